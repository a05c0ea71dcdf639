"""How costs grow with layers, width, length and batch: the same few measurements on a series of shapes.

One model at a time; its weights are random and it is deleted afterwards. What gpt2-xl would cost is calculated from how
near gpt2-medium comes to its bounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from harness import SMOKE, Bench, us
from report import US
from shapes import MEDIUM, MEDIUM_NAME, SCALING_LENGTH, Shape
from targets import READ, SGEMM

TOKENS = 32
SHAPES: dict[str, Shape] = {
    "6 layers, 768 wide": Shape(6, 12, 768),
    "12 layers, 768 wide (gpt2-small)": Shape(),
    "24 layers, 768 wide": Shape(24, 12, 768),
    "12 layers, 384 wide": Shape(12, 6, 384),
    "12 layers, 1024 wide": Shape(12, 16, 1024),
    MEDIUM_NAME: MEDIUM,
}
_SMOKE_SHAPES = {MEDIUM_NAME: Shape(2, 2, 64)}
LENGTHS, BATCHES = (64, 256, 1023), (1, 2, 4, 8)


def shapes(bench: Bench) -> None:
    """Layers and widths."""
    for name, shape in _SMOKE_SHAPES.items() if bench.length is SMOKE else SHAPES.items():
        with _model(bench, shape) as model:
            _decode(bench, name, model, shape)
            _prefill(bench, name, model, shape, SCALING_LENGTH)
            _step(bench, name, model, shape, 1, SCALING_LENGTH)


def lengths(bench: Bench) -> None:
    """Lengths and batches, on gpt2-small's shape."""
    with _model(bench, bench.shape) as model:
        for length in LENGTHS:
            _prefill(bench, f"T={length}", model, bench.shape, length)
            _step(bench, f"B=1 T={length}", model, bench.shape, 1, length)
        for batch in BATCHES:
            _step(bench, f"B={batch} T=64", model, bench.shape, batch, 64)


@contextmanager
def _model(bench: Bench, shape: Shape) -> Iterator[str]:
    name = f"bench_{shape.n_layer}_{shape.d_model}"
    bench.server.init_model(name, shape)
    try:
        yield name
    finally:
        main = bench.server.main
        for table in ("llm_dataset", "llm_param", "llm_model_config"):
            main.conn.execute(f"DELETE FROM {table} WHERE model = %s", (name,))  # type: ignore[arg-type]
        main.conn.execute("VACUUM llm_param")
        main.conn.execute("CHECKPOINT")


def _decode(bench: Bench, name: str, model: str, shape: Shape) -> None:
    """Tokens after a prompt of one; the session's first use of the model is not timed."""
    row = bench.row(f"decode {name}", f"decode, {name}", "ms", TOKENS / 1e3, bound=READ)
    with bench.server.plain_session() as session:
        session.generate([1], 2, model)
        call = partial(session.generate, bench.ids(1), TOKENS, model)
        bench.compare(row, TOKENS * shape.decode_bytes(), [us(call)])


def _prefill(bench: Bench, name: str, model: str, shape: Shape, length: int) -> None:
    row = bench.row(f"prefill {name}", f"prefill of {length} tokens, {name}", "ms", 1e-3, bound=SGEMM)
    with bench.server.session() as session:
        session.generate([1], 2, model)
        bench.compare(row, shape.prefill_flops(length), [us(partial(session.generate, bench.ids(length), 1, model))])


def _step(bench: Bench, name: str, model: str, shape: Shape, batch: int, length: int) -> None:
    row = bench.row(f"step {name}", f"training step of {batch * length} tokens, {name}", "ms", 1e-3, bound=SGEMM)
    memory = bench.row(f"memory {name}", f"  its peak memory, {name}", "MB", 1e6, bound="weights, gradients, moments")
    rows = [bench.ids(length + 1) for _ in range(batch)]

    def run() -> None:
        bench.wait()
        with bench.server.session() as session:
            session.load_rows([r[:-1] for r in rows], [r[1:] for r in rows], model)
            row.add(US, median(session.steps(batch, 2, model=model)))
            memory.add(US, session.probe("memory")["VmHWM"])
            memory.add(memory.bound, shape.state_bytes())

    bench.between(row, shape.step_flops(batch * length), run)
