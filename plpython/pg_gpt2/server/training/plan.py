"""What a run is to do, as llm_run.config records it, and what of that each of its steps goes by."""

from dataclasses import dataclass, field, fields
from typing import Protocol

from ...training.early import Evaluations
from ...training.optim import run_lr
from ...training.options import Course
from .session import Settings


class Plan(Protocol):
    """What steps have in common, in a run or by hand."""

    @property
    def settings(self) -> Settings:
        """Hyperparameters of the optimizer."""

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch."""

    @property
    def shards(self) -> int:
        """Parts of a step whose gradients are added up."""

    def lr(self, step: int) -> float:
        """Learning rate of a step."""


@dataclass(frozen=True)
class RunPlan:
    """What a run is to do. `log_every` and `audit` change what is reported, not what is learned; so does `eval_every`, unless
    evaluations decide about the end."""

    settings: Settings
    n_steps: int
    batch_size: int
    grad_accum: int
    eval_every: int | None
    log_every: int | None
    audit: str = "tape"
    course: Course = field(default_factory=Course)

    @classmethod
    def of(cls, config: dict) -> "RunPlan":
        """The plan that llm_run.config records; what that leaves open is off."""
        numbers = (config["n_steps"], config["batch_size"], config["grad_accum"])
        return cls(settings_of(config), *numbers, None, None, "none", course_of(config))

    @property
    def shards(self) -> int:
        """Parts of a step whose gradients are added up."""
        return self.course.shards

    def together(self, done: int) -> range:
        """The steps after step `done` that are made at once: one, or the rest of a round."""
        every = self.course.sync_every
        return range(done + 1, min(self.n_steps, (done // every + 1) * every) + 1)

    def lr(self, step: int) -> float:
        """Learning rate of step 1 .. n_steps."""
        settings = self.settings
        schedule = self.course.lr_schedule
        return run_lr(step, self.n_steps, settings.warmup, settings.lr_max, settings.min_lr, schedule)

    def evaluations(self) -> Evaluations:
        """Those of a run that has made none yet."""
        return Evaluations(self.course.patience, self.course.min_delta)


def settings_of(config: dict) -> Settings:
    """The settings that were recorded."""
    return Settings(**{field.name: config[field.name] for field in fields(Settings)})


def course_of(config: dict) -> Course:
    """The same for its course; a run from before an option existed has that option's default."""
    return Course(**{name: config[name] for name in Course.options() if name in config})
