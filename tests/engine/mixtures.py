"""Random mixtures of calls that read texts, for comparing what they give with and without kept beginnings.

test_prefixes.py runs this in processes of their own: whether a row's bits depend on its company is BLAS's matter, which has to
have one thread.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any, NamedTuple

import batches
from pg_gpt2 import host
from pg_gpt2.core import op
from pg_gpt2.core.config import Adapter, GPT2Config
from pg_gpt2.fast import layout, ops  # noqa: F401 (registers the ops)
from pg_gpt2.generation import beam, decode, generate, prefixes, scoring
from pg_gpt2.generation.generate import Options
from pg_gpt2.generation.sampling import Sampling
from small_models import GREEDY, WITH_OPTIONS, random_adapter, random_params

CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=160, vocab=331)
ADAPTED = replace(CONFIG, adapter=Adapter(r=8, targets=("attn.c_attn", "mlp.c_proj")))
CALLS = 4  # of a mixture
SAMPLINGS = [GREEDY, Sampling(), *WITH_OPTIONS]
ROOMS = (0, 1 << 17, 3 << 18, 64 << 20)  # bytes: a text of the longest takes some 160 kB


class Cancelled(Exception):
    """In the place of a cancel."""


def are_panels_usable() -> bool:
    """Whether this machine's BLAS keeps rows apart."""
    return layout.in_panels(CONFIG)


class Model(NamedTuple):
    """What calls are given."""

    weights: layout.DecoderWeights
    config: GPT2Config


def models(kind: str) -> list[Model]:
    """Two versions of a model, laid out in this way, and two adapters of the first."""
    op.use_fast(kind != "plain")
    layout.use_panels = kind == "panels"
    found = []
    for version in (1, 2):
        params = random_params(CONFIG, version)
        kept = layout.DecoderWeights(params) if kind == "plain" else layout.lay_out(params, CONFIG)
        found.append(Model(kept.with_identity(("model", version)), CONFIG))
    for version in (1, 2):
        kept = found[0].weights.with_adapter(random_adapter(ADAPTED, version))
        found.append(Model(kept.with_identity(("adapter", version)), ADAPTED))
    return found


def texts(random: Random) -> list[list[int]]:
    """Texts of which many begin alike, some are the same, and some do not fit the window."""
    roots = [[random.randrange(331) for _ in range(random.choice((5, 40, 70, 140)))] for _ in range(3)]
    return [
        (random.choice(roots) + [random.randrange(331) for _ in range(random.randrange(60))])[: random.randint(1, 200)]
        for _ in range(8)
    ]


def call(random: Random, model: Model, pool: list[list[int]]) -> Any:
    """One call, and what it gives; nothing where it is cancelled."""
    kind = random.choice(("generate", "streams", "batch", "next", "beam", "score", "cancel"))
    options = [Options(random.randint(0, 16), random.choice(SAMPLINGS), 7, seed, logprobs=True) for seed in range(7)]
    some = random.choices(pool, k=random.randint(1, 4))
    text = some[0]
    if kind == "generate":
        return list(generate.tokens(*model, text, options[0]))
    if kind == "streams":
        return list(_in_turns(random, [generate.tokens(*model, t, o) for t, o in zip(some, options)]))
    if kind == "batch":
        return batches.texts(*model, some, options[: len(some)])
    if kind == "next":
        decoder, logits = prefixes.begin(*model, text[-160:], 160)
        prefixes.give(decoder)
        return logits.tolist()
    if kind == "beam":
        asked = beam.Beams(3, 6, eos=7, sampling=random.choice((Sampling(), WITH_OPTIONS[0])))
        return beam.beam_search(*model, text[:150], asked)
    if kind == "score":
        return [found.tolist() for found in scoring.token_scores(*model, text)]
    left = random.randint(1, 6)

    def cancel() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Cancelled

    host.check_interrupts = cancel
    try:
        batches.texts(*model, some, options[: len(some)])
        scoring.token_scores(*model, text)
        list(generate.tokens(*model, text, options[0]))
    except Cancelled:
        pass
    finally:
        host.check_interrupts = lambda: None
    return None


def _in_turns(random: Random, streams: list[Iterator[generate.Token]]) -> Iterator[generate.Token | None]:
    """Tokens of several streams that are read by turns, as cursors are, and abandoned sooner or later."""
    while streams:
        stream = random.choice(streams)
        token = next(stream, None)
        yield token
        if token is None or random.random() < 0.05:
            streams.remove(stream)


def mixture(seed: int, versions: tuple[Model, ...], rooms: tuple[int, ...]) -> list[Any]:
    """What the calls of a mixture give, with so much room for what was read."""
    random, room = Random(seed), Random(-seed)
    pool = texts(random)
    found = []
    for _ in range(CALLS):
        limit = room.choice(rooms)
        host.prefix_room = lambda limit=limit: limit  # type: ignore[misc]
        before = prefixes.session.nbytes
        found.append(call(random, random.choice(versions), pool))
        assert prefixes.session.nbytes <= max(limit, before)
    return found


def main(kind: str, count: int, first: int) -> None:
    """Compare, and say how much was not read again."""
    host.notice = lambda message: None
    pairs = list(combinations(models(kind), 2))
    saved = 0
    for seed in range(first, first + count):
        decode.WHOLE = prefixes.WHOLE = 16 if seed % 4 else 128
        decode.PREFILL_ROWS = (512, 48)[seed % 2]
        versions = pairs[seed // 12 % len(pairs)]
        without = mixture(seed, versions, (0,))
        prefixes.session.clear()
        assert mixture(seed, versions, ROOMS if seed % 3 else ROOMS[-1:]) == without, (kind, seed)
        saved += sum(used.saved for used in prefixes.session.usage())
    print(decode.kind_of_cache(versions[0].weights).__name__, saved // count)
