"""Data, steps and runs of training: arguments from SQL, checked.

`given` has the parameters of a function beyond its first, under the names that they have in SQL.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ...core import gpt2
from ...core.config import GPT2Config
from ...core.ops import IGNORED
from ...core.tape import Handle, Runner
from ...errors import InvalidParameter, require, require_positive
from ...generation.decode import check_ids, checked
from ...limits import MOST_BATCH, MOST_STEP_ROWS
from ...op_checks import check_p
from ...options import manual
from ...training.options import Course, RunOptions, Servers, Threads, all_options, gather
from ...training.trainer import nothing_counts
from .. import db, resources, vocabularies
from ..arrays import received
from ..caller_query import source_texts, weighted_pairs
from ..entry import entry
from ..prompts import draw_seed
from ..storage import locks, store, weights
from ..tape import recording
from ..training import audit, datasets, fleet, hand_steps, pairs, runs, session
from ..training.plan import RunPlan


@entry
def load_dataset(
    source: str,
    model: str,
    block_size: int,
    split: str,
    val_fraction: float,
    source_path: str,
    replace: bool,
    pack: bool,
) -> int:
    """Texts of a query -> rows of llm_dataset; their number."""
    require(source=source, model=model, split=split, val_fraction=val_fraction, replace=replace, pack=pack)
    require_positive(block_size=block_size)
    _check_split(split, val_fraction)
    _check_length(model, block_size=block_size)
    cut = datasets.Cut(block_size, split, val_fraction, replace, pack)
    return datasets.add_texts(source_texts(source, source_path), vocabularies.tokenizer_of(model), model, cut)


@entry
def load_pairs(
    source: str,
    model: str,
    max_length: int | None,
    split: str,
    val_fraction: float,
    replace: bool,
    source_path: str,
    special: bool,
) -> int:
    """Pairs of a query -> rows of llm_dataset; their number."""
    require(source=source, model=model, split=split, val_fraction=val_fraction, replace=replace, special=special)
    if max_length is None:
        max_length = store.config(model).n_positions
    require_positive(max_length=max_length)
    _check_split(split, val_fraction)
    _check_length(model, max_length=max_length)
    cut = datasets.Cut(max_length, split, val_fraction, replace, pack=False)
    tokenizer = vocabularies.tokenizer_of(model)
    return pairs.add_pairs(weighted_pairs(source, source_path), tokenizer, model, cut, special)


def _check_split(split: str, val_fraction: float = 0) -> None:
    """Refuse (22023) what is no split, or leaves no row to learn from."""
    if split not in ("train", "val"):
        raise InvalidParameter(
            f"split must be 'train' or 'val', not '{split}'", hint="train is learned from, val is only measured on."
        )
    if not 0 <= val_fraction < 1:
        raise InvalidParameter(
            f"val_fraction must be at least 0 and below 1, not {val_fraction}",
            hint="0.1 keeps a tenth of the rows for validation.",
        )


def _check_length(model: str, **given: int) -> None:
    """Refuse (22023) rows that are longer than the model's window, by the name of the parameter that says so."""
    config = store.find_config(model)
    for name, length in given.items():
        if config is not None and length > config.n_positions:
            raise InvalidParameter(
                f'{name} {length} is more than the {config.n_positions} positions of model "{model}"',
                hint="It could not learn from such rows; n_positions in llm_model_config is the longest.",
            )


@entry
@received(tokens="integer", targets="integer")
def loss(model: str | None, tokens: list[int] | None, targets: list[int] | None, **given: Any) -> float | None:
    """Mean cross entropy of `targets`, recorded at the audit level; None = as the mode is."""
    dropout_p, train, seed, level = (given[name] for name in ("dropout_p", "training", "seed", "audit"))
    if tokens is None or targets is None:
        return None
    require(dropout_p=dropout_p, training=train)
    if level is not None:
        audit.check_level(level)
    if not tokens or len(tokens) != len(targets):
        raise InvalidParameter(
            f"tokens has {len(tokens)} ids and targets {len(targets)}; both must have the same number, at least one",
            hint="targets is tokens shifted by one: what follows each.",
        )
    loaded = weights.load(model)
    _check_shape(loaded.config, given)
    if not (counting := [target for target in targets if target != IGNORED]):
        raise nothing_counts()
    for ids in (tokens, counting):
        check_ids(ids, loaded.config, loaded.name)
    check_p(dropout_p)
    drop, adapter = None, loaded.config.adapter
    if train and (dropout_p or (adapter and adapter.dropout_p)):  # the masks of the model's next step
        step = store.last_step(loaded.name, loaded.config) + 1
        drop = gpt2.Dropout(dropout_p, draw_seed() if seed is None else seed, step)
    chunk = resources.attention_chunk()
    arrays = np.asarray([tokens], np.int64), np.asarray([targets], np.int64)

    def work(run: Runner, params: Mapping[str, Handle]) -> Handle:
        return gpt2.loss(run, params, *arrays, loaded.config, drop=drop, chunk=chunk)

    return float(recording.on_tape(loaded, work, level))


@entry
def evaluate(model: str | None, split: str, max_rows: int | None, batch_size: int) -> list[tuple[float, float, int]]:
    """One row (loss, perplexity, tokens)."""
    require(split=split)
    _check_split(split)
    require_positive(batch_size=batch_size, max_rows=1 if max_rows is None else max_rows)
    loaded = weights.load(model)
    ids = datasets.row_ids(loaded.name, loaded.config, split)[:max_rows]
    mean, count = session.mean_loss(loaded.params, loaded.config, loaded.name, ids, batch_size)
    checked(np.asarray(mean), "the model's losses")
    return [(mean, math.exp(min(mean, 700.0)), count)]


@entry
@received(batch="integer")
def train_step(model: str, batch_id: int | None, **given: Any) -> float:
    """One AdamW step; the loss before it."""
    batch, total_steps, level = (given[name] for name in ("batch", "total_steps", "audit"))
    require(model=model, audit=level)
    settings, threads = gather(given, session.Settings, Threads)
    if batch_id is not None and batch is not None:
        raise InvalidParameter(
            "batch_id and batch cannot be given both", hint="batch => ARRAY[...] takes several rows."
        )
    if batch is not None and (not batch or None in batch):
        raise InvalidParameter(
            "batch must have at least one id and no null", hint="Its elements are ids of llm_dataset."
        )
    if batch is not None and len(batch) > MOST_BATCH:
        raise InvalidParameter(
            f"batch has {len(batch)} rows; the most is {MOST_BATCH}",
            hint="GPT-2 itself was trained with 512 rows a step.",
        )
    if total_steps is not None:
        require_positive(total_steps=total_steps)
    audit.check_level(level)
    _check_shape(store.config(model), given)
    locks.lock(model)
    trained = session.Session(model, threads.grad_workers)
    loss = hand_steps.train_step(trained, [batch_id] if batch_id is not None else batch, settings, total_steps, level)
    trained.keep()
    del trained
    resources.release_memory()
    return loss


@entry
def train(model: str, n_steps: int, **given: Any) -> int:
    """A run of AdamW steps in one transaction; its run_id."""
    plan, threads, servers = _plan(model, n_steps, given)
    _check_shape(store.config(model), given)
    locks.lock(model)
    trained = session.Session(model, threads.grad_workers)
    with fleet.shared(trained, servers, plan.course) as helping:
        run_id = runs.train(trained, plan, helping)
    resources.release_memory()
    return run_id


@entry
@db.committing("llm_train_run")
def train_run(model: str, n_steps: int, **given: Any) -> None:
    """A run of AdamW steps that commits as it goes, or the rest of an interrupted one."""
    plan, threads, servers = _plan(model, n_steps, given)
    commit_every, flush_seconds, wait = (given[name] for name in ("commit_every", "flush_seconds", "wait"))
    require_positive(commit_every=commit_every)
    require(flush_seconds=flush_seconds, wait=wait)
    if not 0 <= flush_seconds < float("inf"):
        raise InvalidParameter(
            f"flush_seconds must be 0 or more, not {flush_seconds}",
            hint="0 commits every commit_every steps, however short.",
        )
    _check_shape(store.config(model), given)
    with locks.session_lock(model, wait):
        trained = session.Session(model, threads.grad_workers)
        with fleet.shared(trained, servers, plan.course) as helping:
            runs.train_committing(trained, plan, helping, commit_every, flush_seconds)
    resources.release_memory()


def _plan(model: str, n_steps: int, given: Mapping[str, Any]) -> tuple[RunPlan, Threads, Servers]:
    """The plan of a run that a call's parameters and options describe, checked, its threads, and its other servers."""
    require(model=model)
    require_positive(n_steps=n_steps)
    settings, run, course, threads, servers = gather(given, session.Settings, RunOptions, Course, Threads, Servers)
    if run.batch_size * run.grad_accum > MOST_STEP_ROWS:
        raise InvalidParameter(
            f"a step of batch_size {run.batch_size} x grad_accum {run.grad_accum} rows is more than {MOST_STEP_ROWS}",
            hint="GPT-2 itself was trained with 512 rows a step.",
        )
    course.require_sense(settings, run)
    servers.require_sense(course)
    return RunPlan(settings, n_steps, **asdict(run), course=course), threads, servers


def _check_shape(config: GPT2Config, given: Mapping[str, Any]) -> None:
    """Refuse (22023) a shape among a call's parameters that is not what the model has."""
    store.check_overrides(config, *(given[name] for name in ("n_layer", "n_head", "d", "vocab")))


@entry
def train_stop(model: str) -> bool:
    """Ask a running llm_train_run to stop; whether one was running."""
    require(model=model)
    store.config(model)  # a misspelt name would seem to have no run
    return bool(
        db.run(
            "UPDATE {schema}.llm_run SET stop_requested = true WHERE run_id IN"
            " (SELECT run_id FROM {schema}.llm_train_progress WHERE model = $1 AND status = 'running')",
            ["text"],
            model,
        )
    )


@entry
def options() -> list[tuple[str, str, str | None, str, str]]:
    """Rows (name, type, default_value, domain, meaning) of the manual of all options."""
    return list(manual(all_options()))
