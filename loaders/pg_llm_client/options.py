"""The keywords of the client's `train` and of what precedes it; the declared options of training and generation are in
training_options.py and generation_options.py.

A keyword that is left out is not sent: the server has the same default. statements.py says which type of SQL each has.
"""

from typing import TypedDict

from .training_options import TrainingOptions


class DataOptions(TypedDict, total=False):
    """What a model is trained on: parameters of llm_dataset_load. Without `source`, the rows that llm_dataset has."""

    source: str | None
    block_size: int | None
    val_fraction: float


class PairOptions(TypedDict, total=False):
    """The keywords of `load_pairs`."""

    split: str
    val_fraction: float
    replace: bool
    special: bool


class AdapterOptions(TypedDict, total=False):
    """The keywords of `create_adapter`."""

    r: int
    alpha: float
    targets: list[str]
    dropout_p: float
    seed: int


class TrainOptions(TrainingOptions, DataOptions, total=False):
    """The keywords of `train`."""
