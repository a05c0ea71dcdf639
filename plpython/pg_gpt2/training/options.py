"""What a training may ask for: every option declared once (pg_gpt2/options.py says what follows from that).

Keys of `options` are the names that Hugging Face's TrainingArguments has for the same, where it has one. Defaults are those of
llm_train and llm_train_run; that of `warmup` is 0 in llm_train_step.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FeatureNotSupported, InvalidParameter
from ..options import (
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    TEXTS,
    Declared,
    Option,
    above,
    assemble,
    at_least,
    by_key,
    checked,
    from_below,
    one_of,
    option,
    read_object,
)

AUDIT_LEVELS = ("none", "tape", "full")
SCHEDULES = ("cosine", "linear", "constant")
_HINT = "Leave it out to get its default."


@dataclass(frozen=True)
class Hyperparameters(Declared):
    """What decides, with the data, about the weights."""

    dropout_p: float = option(
        0.1,
        NUMBER,
        from_below(0, 1),
        hint="0 switches dropout off; GPT-2 was trained with 0.1.",
        meaning="The probability of dropout, at GPT-2's three places; 0 switches it off.",
    )
    beta1: float = option(
        0.9,
        NUMBER,
        from_below(0, 1),
        key="adam_beta1",
        hint="torch's default is 0.9.",
        meaning="AdamW's decay of the mean of gradients.",
    )
    beta2: float = option(
        0.999,
        NUMBER,
        from_below(0, 1),
        key="adam_beta2",
        hint="torch's default is 0.999.",
        meaning="AdamW's decay of the mean of squared gradients.",
    )
    eps: float = option(
        1e-8,
        NUMBER,
        at_least(0),
        key="adam_epsilon",
        hint="torch's default is 1e-8.",
        meaning="What AdamW adds to the root of the mean of squared gradients before it divides by that.",
    )
    weight_decay: float = option(
        0.01,
        NUMBER,
        at_least(0),
        key="weight_decay",
        parameter="wd",
        hint=_HINT,
        meaning="AdamW's weight decay, on matrices only.",
    )
    lr_max: float = option(
        2.5e-4,
        NUMBER,
        at_least(0),
        key="learning_rate",
        hint=_HINT,
        meaning="The learning rate after warm-up, from where it falls as lr_schedule says.",
    )
    warmup: int = option(
        2000,
        INTEGER,
        at_least(0),
        key="warmup_steps",
        hint=_HINT,
        meaning="Steps in which the learning rate rises from 0, at most a tenth of all.",
    )
    min_lr: float = option(
        0.0,
        NUMBER,
        at_least(0),
        hint=_HINT,
        meaning="The learning rate at the end, where lr_schedule lets it fall.",
    )
    grad_clip: float | None = option(
        None,
        NUMBER,
        above(0),
        key="max_grad_norm",
        hint="null = no clipping.",
        meaning="Gradients whose global norm is larger are scaled down to it; null: none are.",
    )
    seed: int = option(
        0,
        INTEGER,
        hint="Any number of 64 bits.",
        meaning="Decides about the order of rows and about dropout.",
    )


@dataclass(frozen=True)
class RunOptions(Declared):
    """The options that a run adds to them."""

    batch_size: int = option(
        8,
        INTEGER,
        at_least(1),
        key="per_device_train_batch_size",
        hint="Example: batch_size => 8.",
        meaning="Rows of llm_dataset that go through the model together.",
    )
    grad_accum: int = option(
        1,
        INTEGER,
        at_least(1),
        key="gradient_accumulation_steps",
        hint="Example: grad_accum => 8.",
        meaning="So many batches make one step.",
    )
    eval_every: int | None = option(
        None,
        INTEGER,
        at_least(0),
        key="eval_steps",
        hint="0 turns it off.",
        meaning="The loss on the split val is measured every so many steps and after the last; null or 0: never.",
    )
    log_every: int | None = option(
        None,
        INTEGER,
        at_least(0),
        key="logging_steps",
        hint="0 turns it off.",
        meaning="A NOTICE comes every so many steps; null: ten in all, 0: none.",
    )
    audit: str = option(
        "tape",
        TEXT,
        one_of(*AUDIT_LEVELS),
        hint="tape: one row an op; full: values and gradients as well.",
        meaning="What is recorded of the ops of each step: nothing, a row of llm_tape each, or their values and gradients, too.",
    )


@dataclass(frozen=True)
class Course(Declared):
    """How a run goes and ends: keys of `options` alone, which no function has parameters for."""

    lr_schedule: str = option(
        "cosine",
        TEXT,
        one_of(*SCHEDULES),
        hint="cosine and linear fall to min_lr, constant stays.",
        meaning="How the learning rate falls from the end of warm-up to min_lr at the last step: by half a cosine, in a"
        " straight line, or not at all.",
    )
    patience: int | None = option(
        None,
        INTEGER,
        at_least(1),
        hint="3 ends a run at the third evaluation in a row without gain.",
        meaning="After so many evaluations in a row without gain the run ends, with status early; null: it never does.",
    )
    min_delta: float = option(
        0.0,
        NUMBER,
        at_least(0),
        hint="0 takes whatever is lower for a gain.",
        meaning="By more than this the validation loss must be below the lowest before for patience to count it as a gain.",
    )
    keep_best: bool = option(
        False,
        FLAG,
        hint="true leaves the weights of the best evaluation.",
        meaning="At the end the model has the weights, with the optimizer's state, of the evaluation with the lowest loss,"
        " not those of the last step.",
    )
    shards: int = option(
        1,
        INTEGER,
        at_least(1),
        hint="4 lets up to four servers share a step.",
        meaning="The rows of a step are cut into so many parts, whose gradients are added up in order. It decides about the last"
        " bits, and about how many servers a step can be shared by (workers); the mean is over the same targets.",
    )
    sync_every: int = option(
        1,
        INTEGER,
        at_least(1),
        hint="100 lets workers be called once in 100 steps.",
        meaning="Above 1, each shard has a replica of the model, which makes so many steps by itself; then all go on from their"
        " mean, as outer_lr and outer_momentum say (DiLoCo). For servers that are far from each other.",
    )
    outer_lr: float = option(
        0.7,
        NUMBER,
        above(0),
        hint="DiLoCo has 0.7; with outer_momentum 0, 1 goes on from the mean itself.",
        meaning="With sync_every, how far the shared weights go towards the mean of the replicas.",
    )
    outer_momentum: float = option(
        0.9,
        NUMBER,
        from_below(0, 1),
        hint="DiLoCo has 0.9; 0 needs no memory.",
        meaning="With sync_every, Nesterov's momentum of that.",
    )

    @property
    def is_local(self) -> bool:
        """Whether shards are replicas, which learn by themselves for a round of steps."""
        return self.sync_every > 1

    @property
    def evaluates(self) -> bool:
        """Whether evaluations decide what the run leaves."""
        return self.patience is not None or self.keep_best

    def require_sense(self, settings: Hyperparameters, run: RunOptions) -> None:
        """Refuse (22023) what has no meaning without another option, or beside it."""
        if self.evaluates and not run.eval_every:
            name = "keep_best" if self.patience is None else "patience"
            raise InvalidParameter(
                f"{name} needs evaluations, and eval_every is {'null' if run.eval_every is None else 0}",
                hint="eval_every => 100 measures the loss on the split val every 100 steps.",
            )
        if self.min_delta and self.patience is None:
            raise InvalidParameter(
                f"min_delta {self.min_delta:g} has no effect without patience",
                hint='Example: options => \'{"patience": 3, "min_delta": 0.01}\'; keep_best takes the lowest loss in any case.',
            )
        rows = run.batch_size * run.grad_accum
        if self.shards > rows:
            raise InvalidParameter(
                f"shards {self.shards} is more than the {rows} rows of a step",
                hint="A step has batch_size x grad_accum rows, and a shard at least one of them.",
            )
        self._require_replicas(run)
        if self.lr_schedule == "constant" and settings.min_lr:
            raise InvalidParameter(
                f"min_lr {settings.min_lr:g} has no effect with lr_schedule constant",
                hint="cosine and linear fall to min_lr; a constant learning rate stays at lr_max.",
            )

    def _require_replicas(self, run: RunOptions) -> None:
        """Refuse what does not go with sync_every, or nowhere else."""
        for name, value in (("outer_lr", self.outer_lr), ("outer_momentum", self.outer_momentum)):
            if not self.is_local and value != self.options()[name].default:
                raise InvalidParameter(
                    f"{name} {value:g} has no effect without sync_every",
                    hint='{"shards": 4, "sync_every": 100} lets four replicas make 100 steps each by themselves.',
                )
        if self.is_local and self.shards == 1:
            raise InvalidParameter(
                f"sync_every {self.sync_every} has nothing to average: shards is 1",
                hint='{"shards": 4, "sync_every": 100} lets four replicas make 100 steps each by themselves.',
            )
        if self.is_local and run.audit != "none":
            raise FeatureNotSupported(
                f"audit {run.audit} records steps of one model, and with sync_every several make each",
                hint="audit => 'none'; llm_train_log has loss, rows and norms of each step in any case.",
            )


@dataclass(frozen=True)
class Threads(Declared):
    """Threads, which change no result."""

    grad_workers: int = option(
        1,
        INTEGER,
        at_least(1),
        hint="Example: grad_workers => 8.",
        meaning="Threads that compute; 1: as many as pg_gpt2.threads says. They change no result.",
    )
    prune_workers: int = option(
        1,
        INTEGER,
        at_least(1),
        hint="Example: prune_workers => 8.",
        meaning="Is checked and has no effect: pruning takes no threads of its own.",
    )


@dataclass(frozen=True)
class Servers(Declared):
    """Other servers that compute shards of a run: keys of `options` alone. They change no result."""

    workers: tuple[str, ...] = option(
        (),
        TEXTS,
        hint='Foreign servers: \'{"workers": ["w1", "w2"], "shards": 4}\'.',
        meaning="Foreign servers that compute shards of each step beside this one, which calls them by dblink.",
    )
    worker_timeout: float = option(
        300.0,
        NUMBER,
        above(0),
        hint="It must be longer than a shard takes.",
        meaning="A worker that has not answered for so many seconds is given up for a while; others compute its shards.",
    )
    allow_other_bits: bool = option(
        False,
        FLAG,
        hint="true takes any machine.",
        meaning="Workers may have another processor, BLAS or NumPy, whose results differ in the last bits: who computes a shard"
        " then matters.",
    )

    def require_sense(self, course: Course) -> None:
        """Refuse (22023) workers that have nothing to do, or that are named twice."""
        if self.workers and course.shards == 1:
            raise InvalidParameter(
                "workers have nothing to do: shards is 1",
                hint='{"workers": ["w1"], "shards": 2} gives each of two servers one shard of a step.',
            )
        if len(set(self.workers)) < len(self.workers):
            raise InvalidParameter(
                f"workers {json.dumps(self.workers, ensure_ascii=False)} names a server twice",
                hint="A server computes one shard at a time, on all of its cores.",
            )


def all_options() -> Iterator[Option]:
    """Every declaration, once."""
    yield from (
        Hyperparameters.options() | RunOptions.options() | Course.options() | Threads.options() | Servers.options()
    ).values()


def gather(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """An object of each of `kinds` from parameters by name, and from the JSON text under the name options, which may set them.

    22023 for a key that none of them declares, for a value that does not fit, and for one that contradicts a parameter.
    """
    said = read_object(given.get("options"), '{"learning_rate": 0.001}')
    return assemble(kinds, given, checked(said, by_key(kinds), "llm_training_options"))
