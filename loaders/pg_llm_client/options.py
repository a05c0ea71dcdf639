"""The keywords of the client's methods for training, each declared once; those for generation are in generation_options.py.

A keyword that is left out is not sent: the server has the same default. statements.py says which type of SQL each has.
"""

from typing import TypedDict


class TrainingOptions(TypedDict, total=False):
    """How a model is trained: parameters of llm_train, with its defaults."""

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


class DataOptions(TypedDict, total=False):
    """What a model is trained on: parameters of llm_dataset_load. Without `source`, the rows that llm_dataset has."""

    source: str | None
    block_size: int | None
    val_fraction: float


class TrainOptions(TrainingOptions, DataOptions, total=False):
    """The keywords of `train`."""
