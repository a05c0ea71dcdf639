"""What `train` hands on to which function, and the progress bar that the NOTICEs of llm_train drive."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from tqdm import tqdm

from .options import DataOptions, TrainOptions
from .training_options import TRAINING_KEYS, TrainingOptions

STEP = re.compile(r"step (\d+)/\d+: (.*)")


def split(options: TrainOptions, commit_every: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of llm_dataset_load, none without `source`, and of llm_train.

    TypeError for a name that neither has, and for `source` beside `commit_every`.
    """
    for name in options.keys() - TrainOptions.__annotations__.keys():
        raise TypeError(f"train() got an unexpected keyword argument '{name}'")
    training = {name: value for name, value in options.items() if name in TrainingOptions.__annotations__}
    if others := {name: training.pop(name) for name in TRAINING_KEYS if name in training}:
        training["options"] = json.dumps(others)
    if options.get("source") is None:
        return {}, training
    if commit_every is not None:
        raise TypeError(
            "train() got source and commit_every: a repeated call would load the texts again; load them first"
        )
    data = {"block_size": None, "val_fraction": 0.0, **options}
    return {name: value for name, value in data.items() if name in DataOptions.__annotations__}, training


@contextmanager
def progress_bar(
    conn: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]", n_steps: int, model: str | None, shown: bool | None
) -> Iterator[None]:
    """While it lasts, a bar follows the NOTICEs of a training on `conn`; `shown` None = on a terminal only."""
    with tqdm(
        total=n_steps, desc=f"training {model or ''}".strip(), unit="step", disable=None if shown is None else not shown
    ) as bar:

        def follow(notice: psycopg.errors.Diagnostic) -> None:
            step = STEP.fullmatch(notice.message_primary or "")
            if step:
                bar.set_postfix_str(step[2], refresh=False)
                bar.update(int(step[1]) - bar.n)

        conn.add_notice_handler(follow)
        try:
            yield
        finally:
            conn.remove_notice_handler(follow)
        bar.update(n_steps - bar.n)
