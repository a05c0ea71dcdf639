"""The keywords of the client's methods, each declared once: name, type and, as `Annotated[type, default]`, default.

A keyword that is left out is not sent: the server has the same default. statements.py says which type of SQL each has.
"""

from collections.abc import Sequence
from typing import Annotated, TypedDict


class GenerationOptions(TypedDict, total=False):
    """How a prompt is continued: parameters of llm_generate."""

    max_tokens: Annotated[int, 64]
    temperature: Annotated[float, 1.0]
    topk: Annotated[int, 50]
    topp: Annotated[float, 0.95]
    model: Annotated[str | None, None]
    eos_token: Annotated[int | None, None]
    seed: Annotated[int | None, None]
    stop: Annotated[str | Sequence[str] | None, None]
    repetition_penalty: Annotated[float, 1.0]
    min_p: Annotated[float, 0.0]
    echo: Annotated[bool, True]


class BeamOptions(TypedDict, total=False):
    """How beam search continues a prompt: parameters of llm_beam_search, whose default is 4 beams."""

    beam_width: Annotated[int, 3]
    max_tokens: Annotated[int, 64]
    length_penalty: Annotated[float, 1.0]
    early_stopping: Annotated[bool, False]
    eos_token: Annotated[int | None, None]
    model: Annotated[str | None, None]
    prompt_ids: Annotated[Sequence[int] | None, None]


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
