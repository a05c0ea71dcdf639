"""Rows about relatives of GPT-2: decoding and a training step, each beside plain GPT-2 of the same shape."""

from functools import partial
from statistics import median

from decoding import NEW_TOKENS, PROMPT
from harness import SMOKE, Bench, us
from ours import MODEL
from report import US
from shapes import MIDDLE
from targets import PLAIN, RELATIVES

NAME, PLAIN_NAME = "bench_relative", "bench_plain"
BATCH, LENGTH, STEPS = 4, 64, 8
TURNS = 3  # of both parties in a round, since the ratios are near 1


def _often(bench: Bench, count: int) -> int:
    return 1 if bench.length is SMOKE else count


def decode(bench: Bench) -> None:
    """One stream; a relative is made, measured, and dropped again."""
    for name, architecture in RELATIVES.items():
        bench.server.init_model(NAME, bench.shape, **architecture)
        row = bench.row(f"decode {name}", f"decode with {name}, {NEW_TOKENS} new", "tokens/s", NEW_TOKENS, rate=True)
        with bench.server.plain_session() as session:
            ids = bench.ids(PROMPT)
            parties = [
                us(partial(session.generate, ids, NEW_TOKENS, NAME)),
                (PLAIN, partial(session.generate, ids, NEW_TOKENS, MODEL)),
            ]
            for _, work in parties:
                work()
            for _ in range(_often(bench, TURNS)):
                bench.compare(row, 0, parties)
    bench.server.main.value("SELECT llm_drop_model(%s)", NAME)


def train(bench: Bench) -> None:
    """Steps of a smaller model, where what is not a product weighs more; in turns, a first step of each not timed."""
    shape = min(bench.shape, MIDDLE, key=lambda shape: shape.n_params)
    what = f"{shape.n_layer} layers, {shape.d_model} wide, B={BATCH} T={LENGTH}"
    bench.server.init_model(PLAIN_NAME, shape)
    stream = [[bench.rng.randrange(shape.vocab) for _ in range(LENGTH + 1)] for _ in range(BATCH)]
    tokens, targets = [line[:-1] for line in stream], [line[1:] for line in stream]
    for name, architecture in RELATIVES.items():
        bench.server.init_model(NAME, shape, **architecture)
        row = bench.row(f"step {name}", f"training step with {name}, {what}", "ms", 1e-3)
        for _ in range(_often(bench, TURNS)):
            for party, model in ((US, NAME), (PLAIN, PLAIN_NAME)):
                bench.wait()
                with bench.server.session() as session:
                    session.load_rows(tokens, targets, model)
                    row.add(party, median(session.steps(BATCH, _often(bench, STEPS), model=model)))
    for model in (NAME, PLAIN_NAME):
        bench.server.main.value("SELECT llm_drop_model(%s)", model)
