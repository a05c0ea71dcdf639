"""The rows that a run is evaluated on, where that decides about its end: they must be there, and stay what they are."""

import hashlib

import numpy as np

from ... import host
from ...errors import InvalidParameter, WrongState
from ...training.options import Course
from . import datasets
from .session import Learner

ROWS = 64  # at a time


def row_ids(learner: Learner, course: Course) -> np.ndarray:
    """Ids of the rows of the split val; where there are none, the error (22023) names the option that needs them."""
    try:
        return datasets.row_ids(learner.model, learner.config, "val")
    except WrongState as error:
        if not course.evaluates:
            raise
        name = "keep_best" if course.patience is None else "patience"
        raise InvalidParameter(f"{name} needs evaluations, and {error.message}", hint=error.hint) from None


def data(learner: Learner, ids: np.ndarray) -> dict[str, object]:
    """Number and digest of these rows, for llm_run.config."""
    found = hashlib.sha256()
    for start in range(0, len(ids), ROWS):
        for row in datasets.rows(ids[start : start + ROWS].tolist(), learner.model, learner.config):
            found.update(row.digest.to_bytes(8, "big", signed=True))
        host.check_interrupts()
    return {"val_rows": len(ids), "val_digest": found.hexdigest()}
