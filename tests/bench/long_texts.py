"""Texts that are longer than the window: perplexity, whose windows overlap by half, and an embedding, whose windows do not."""

import math
from functools import partial
from typing import Any

import rivals
from drafting import SHIPPED
from harness import Bench, us
from ours import MODEL
from shapes import ROOT, Shape
from targets import SGEMM
from texts import english

SHIPPED_SHAPE = Shape(n_layer=6, n_head=4, d_model=256, n_positions=256, vocab=4096)
Window = tuple[int, int, int]  # (start, first, stop): it reads start..stop and scores first..stop
CLOSE = 1e-3  # of two perplexities, or two embeddings


def shipped(bench: Bench) -> None:
    """The model that ships, which is so small that all beside the products weighs more than in others."""
    bench.server.load_shipped(SHIPPED)
    torch = rivals.Torch(ROOT / "loaders" / "shipped" / SHIPPED, bench.bounds.threads) if bench.torch else None
    perplexity(bench, "long perplexity", bench.length.scored_bytes, SHIPPED, SHIPPED_SHAPE, torch)
    embedding(bench, "long embedding", bench.length.embedded_bytes, torch)


def small(bench: Bench) -> None:
    """gpt2-small's shape, a tenth of the text."""
    perplexity(bench, "long perplexity small", bench.length.scored_bytes // 10, MODEL, bench.shape, bench.torch)


def perplexity(bench: Bench, key: str, size: int, model: str, shape: Shape, torch: Any) -> None:
    """llm_perplexity of `size` bytes."""
    from pg_gpt2.generation.scoring import windows

    text, ids = _text(bench, size, model)
    parts = list(windows(len(ids), shape.n_positions))
    which = "the model that ships" if model == SHIPPED else f"{shape.n_layer} layers, {shape.d_model} wide"
    row = bench.row(key, f"perplexity of {size // 1000:,} kB, {which}", "s", bound=SGEMM)
    parties = [us(partial(bench.server.main.value, "SELECT llm_perplexity(%s, %s)", text, model))]
    if torch:
        parties.append((torch.name, partial(torch.perplexity, ids, parts)))
    demand = sum(shape.window_flops(stop - 1 - start, stop - first) for start, first, stop in parts)
    found = bench.compare(row, demand, parties)
    if torch:
        bench.check(f"{key}: as {torch.name}", math.isclose(*found, rel_tol=CLOSE))


def embedding(bench: Bench, key: str, size: int, torch: Any) -> None:
    """llm_text_embedding of `size` bytes, by the model that ships."""
    text, ids = _text(bench, size, SHIPPED)
    width = SHIPPED_SHAPE.n_positions
    row = bench.row(key, f"embedding of {size // 1000:,} kB, the model that ships", "s", bound=SGEMM)
    parties = [us(partial(bench.server.main.value, "SELECT llm_text_embedding(%s, model_name => %s)", text, SHIPPED))]
    if torch:
        parties.append((torch.name, partial(torch.mean_state, ids, width)))
    demand = sum(SHIPPED_SHAPE.window_flops(min(width, len(ids) - start), 0) for start in range(0, len(ids), width))
    found = bench.compare(row, demand, parties)
    if torch:
        bench.check(f"{key}: as {torch.name}", all(math.isclose(a, b, abs_tol=CLOSE) for a, b in zip(*found)))


def _text(bench: Bench, size: int, model: str) -> tuple[str, list[int]]:
    """English of `size` bytes, and its ids; the server has its words in memory then."""
    text = english(size)[0]
    return text, bench.server.main.value("SELECT llm_encode(%s, %s)", text, model)
