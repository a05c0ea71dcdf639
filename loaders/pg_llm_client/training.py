"""Options of llm_train, and the progress bar that its NOTICEs drive."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import psycopg
from tqdm import tqdm

STEP = re.compile(r"step (\d+)/\d+: (.*)")


class TrainingOptions(TypedDict, total=False):
    """Parameters of llm_train by its names; what is left out has the server's default."""

    dropout_p: float
    beta1: float
    beta2: float
    eps: float
    wd: float
    lr_max: float
    warmup: int
    grad_clip: float | None
    batch_size: int
    grad_accum: int
    min_lr: float
    seed: int
    eval_every: int | None
    log_every: int | None
    grad_workers: int
    prune_workers: int
    audit: str


def check_options(options: dict[str, Any], source: str | None, commit_every: int | None) -> None:
    """TypeError for a name that is not one of TrainingOptions, and for what does not go together."""
    for name in options.keys() - TrainingOptions.__annotations__.keys():
        raise TypeError(f"train() got an unexpected keyword argument '{name}'")
    if source is not None and commit_every is not None:
        raise TypeError(
            "train() got source and commit_every: a repeated call would load the texts again; load them first"
        )


@contextmanager
def progress_bar(
    conn: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]", n_steps: int, model: str | None, shown: bool | None
) -> Iterator[None]:
    """A bar that follows the NOTICEs of the training that runs meanwhile; `shown` None = on a terminal only."""
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
