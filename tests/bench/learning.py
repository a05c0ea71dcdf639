"""Rows about training: steps of gpt2-small's shape, what is around them, the optimizer, and nanoGPT's recipe for a CPU."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
import rivals
import shapes
from harness import Bench, us
from ours import MODEL, timed
from report import US, Row
from shapes import CLIP, LR, WEIGHT_DECAY
from targets import READ, SGEMM, TORCH
from texts import english

RECIPE = "bench_recipe"
DROPOUT = 0.1  # the default of llm_train and of transformers


def train(bench: Bench, batch: int, length: int, steps: int, dropout: float = 0.0) -> None:
    """Training steps in a session of their own, and the same of torch; a first step of each is not timed."""
    key, name = f"train {batch}x{length}", f"training step, B={batch} T={length}"
    if dropout:
        key, name = f"{key} dropout", f"{name}, dropout {dropout}"
    row = bench.row(key, name, "s", bound=SGEMM)
    tokens, targets = batch_of(bench, batch, length)

    def run() -> None:
        bench.wait()
        with bench.server.session() as session:
            session.load_rows(tokens, targets)
            row.add(US, median(session.steps(batch, steps, dropout)))
            peak = session.probe("memory")["VmHWM"]
        _peak_row(bench, batch, length).add(US, peak)
        if bench.torch:
            bench.torch.train(tokens, targets, dropout)
            bench.wait()
            row.add(TORCH, median(timed(lambda: bench.torch.train(tokens, targets, dropout))[0] for _ in range(steps)))

    bench.between(row, bench.shape.step_flops(batch * length), run)


def batch_of(bench: Bench, batch: int, length: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of random ids, and what follows each of these."""
    stream = [bench.ids(length + 1) for _ in range(batch)]
    return [line[:-1] for line in stream], [line[1:] for line in stream]


def _peak_row(bench: Bench, batch: int, length: int) -> Row:
    what = f"peak memory of the process, B={batch} T={length}"
    return bench.row(f"peak {batch}x{length}", what, "MB", 1e6, bound="weights, gradients, moments")


def peak(bench: Bench, batch: int, length: int) -> None:
    """Peak memory of two steps of torch in a process of its own; ours is taken where steps are timed."""
    row = _peak_row(bench, batch, length)
    row.add(row.bound, bench.shape.state_bytes())
    if bench.torch:
        row.add(TORCH, peak_of_torch(bench, batch, length, "Torch"))


def peak_of_torch(bench: Bench, batch: int, length: int, rival: str) -> float:
    """Bytes that a process in which a class of `rivals` trains has at its peak."""
    program = Path(__file__).with_name("peak.py")
    command = [sys.executable, program, rival, bench.scratch, batch, length, bench.server.threads]
    return float(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)


def audit(bench: Bench) -> None:
    """Steps of which each is put on the tape, and steps that nobody watches."""
    row = bench.row("audit", "training step, B=4 T=64, every step on the tape", "s")
    tokens, targets = batch_of(bench, 4, 64)
    for party, level in ((US, "tape"), ("without audit", "none")):
        bench.wait()
        with bench.server.session(audit_keep=0) as session:
            session.load_rows(tokens, targets)
            row.add(party, min(session.steps(4, 3, audit=level)))


def flush(bench: Bench) -> None:
    """What a call of llm_train takes beside its step: reading the tables, and writing weights and moments."""
    row = bench.row("flush", "llm_train beside its step: reading and writing 1.5 GB of weights and moments", "s")
    tokens, targets = batch_of(bench, 1, 8)
    bench.wait()
    with bench.server.session() as session, session.conn.transaction(force_rollback=True):
        session.load_rows(tokens, targets)
        seconds, run = session.train(MODEL, 1, batch_size=1, dropout_p=0.0)
        row.add(US, seconds - session.log(run)[0][0])
    bench.server.main.conn.execute("VACUUM llm_param")
    bench.server.main.conn.execute("CHECKPOINT")


def adamw(bench: Bench) -> None:
    """The optimizer alone, on arrays of gpt2-small's sizes in this process: norm of all gradients, clipping, update."""
    from pg_gpt2.core.config import GPT2Config
    from pg_gpt2.fast import blas_library, threads
    from pg_gpt2.training import optim

    blas_library.set_blas_threads(1)
    threads.set_threads(bench.server.threads)
    n = bench.shape
    sizes = GPT2Config(n.n_layer, n.n_head, n.d_model, n.n_positions, n.vocab).param_shapes()
    weights, grads, m, v = ({name: np.full(size, 1e-3, np.float32) for name, size in sizes.items()} for _ in range(4))
    steps = dict.fromkeys(sizes, 1)

    def step() -> None:
        scale = optim.clip_scale(optim.global_norm(list(grads.values())), CLIP)
        optim.step_all(
            *(weights, grads, m, v, steps),
            lr=LR,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=WEIGHT_DECAY,
            grad_scale=scale,
        )

    parties = [us(step)]
    if bench.torch:
        parties.append((TORCH, bench.torch.optimizer_step))
    for _, work in parties:
        work()  # to touch the memory
    row = bench.row("adamw", "AdamW with norm and clip, 124M", "s", bound=READ)
    for _ in range(5):
        bench.compare(row, bench.shape.adamw_bytes(), parties)


def recipe(bench: Bench, steps: int = 0) -> None:
    """nanoGPT's settings for a CPU, ours in one call of llm_train; torch learns from the same rows in the same order."""
    steps = steps or bench.length.recipe_steps
    text = english(1_000_000)[0]
    characters = sorted(set(text))
    ids = np.searchsorted(np.array(characters), np.array(list(text)))
    shape = shapes.nanogpt(len(characters))
    batch, length = shapes.NANOGPT_BATCH, shapes.NANOGPT_LENGTH
    server = bench.server
    server.init_model(RECIPE, shape)
    starts = range(0, len(ids) - length - 1, length)
    server.main.load_rows(
        [ids[i : i + length].tolist() for i in starts], [ids[i + 1 : i + length + 1].tolist() for i in starts], RECIPE
    )
    weights = bench.scratch / "recipe.safetensors"
    server.export(weights, RECIPE)
    options = {
        "batch_size": batch,
        "lr_max": shapes.NANOGPT_LR,
        "min_lr": shapes.NANOGPT_MIN_LR,
        "warmup": shapes.NANOGPT_WARMUP,
        "beta2": shapes.NANOGPT_BETA2,
        "wd": WEIGHT_DECAY,
        "grad_clip": CLIP,
        "dropout_p": 0.0,
    }
    whole = bench.row("nanogpt", f"nanoGPT's recipe for a CPU, {steps:,} steps", "s", bound=SGEMM)
    each = bench.row("nanogpt step", "  a step of it", "ms", 1e-3, bound=SGEMM)
    loss = bench.row("nanogpt loss", "  mean loss of its last tenth", "nats")
    overhead = bench.row("overhead", "  the call of llm_train, 0.8 million weights", "s")
    demand = shape.step_flops(batch * length)

    def run() -> tuple[list, list[tuple[float, float]]]:
        bench.wait()
        with server.session() as session:
            session.probe("watch_steps")
            seconds, run_id = session.train(RECIPE, steps, **options)
            overhead.add(US, seconds)
            overhead.add("its arithmetic", session.probe("watched_seconds"))
            log = session.log(run_id)
        whole.add(US, seconds)
        if not bench.torch:
            return log, []
        order = dict(zip(_row_ids(bench), starts, strict=True))
        rows = [[order[i] for i in batch_ids] for _, _, batch_ids in log]
        rival = rivals.NanoGPT(weights, shape, server.threads)
        bench.wait()
        seconds, found = timed(partial(rival.train, ids, rows, length))
        whole.add("torch", seconds)
        return log, found

    log, theirs = bench.between(whole, steps * demand, run)
    tail = max(1, steps // 10)
    for party, found in ((US, [(seconds, value) for seconds, value, _ in log]), ("torch", theirs)):
        if found:
            each.add(party, median(seconds for seconds, _ in found))
            loss.add(party, fmean(value for _, value in found[-tail:]))
    each.add(SGEMM, whole.costs[SGEMM][-1] / steps)


def _row_ids(bench: Bench) -> list[int]:
    query = "SELECT id FROM llm_dataset WHERE model = %s ORDER BY id"
    return [i for (i,) in bench.server.main.conn.execute(query, (RECIPE,))]


def workers(bench: Bench) -> None:
    """grad_workers 2 against 1 in a session that has one thread, on the recipe's model."""
    if not bench.server.main.value("SELECT EXISTS (SELECT FROM llm_dataset WHERE model = %s)", RECIPE):
        recipe(bench, 6)
    steps = min(60, bench.length.recipe_steps)
    row = bench.row("workers", "training step of the recipe's model, grad_workers 2", "ms", 1e-3)
    for party, count in ((US, 2), ("grad_workers 1", 1)):
        bench.wait()
        with bench.server.session(threads=1) as session, session.conn.transaction(force_rollback=True):
            _, run = session.train(RECIPE, steps, batch_size=shapes.NANOGPT_BATCH, dropout_p=0.0, grad_workers=count)
            row.add(party, median(seconds for seconds, _, _ in session.log(run)))
