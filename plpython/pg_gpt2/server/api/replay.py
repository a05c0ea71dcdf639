"""llm_replay: arguments from SQL, checked."""

from ...errors import require
from .. import resources
from ..entry import entry
from ..training import run_replay
from ..training.replay_start import Record


@entry
def replay(run_id: int, from_checkpoint: int | None, to_step: int | None) -> list[tuple]:
    """One row (first_step, last_step, step, what, recorded, replayed, exact, note)."""
    require(run_id=run_id)
    resources.apply_settings()
    report = run_replay.replay(Record.find(run_id), from_checkpoint, to_step)
    resources.release_memory()
    found = report.difference
    parted = (None,) * 4 if found is None else (found.step, found.what, _text(found.recorded), _text(found.replayed))
    return [(report.first_step, report.last_step, *parted, report.exact, "; ".join(report.notes))]


def _text(value: object) -> str | None:
    return None if value is None else str(value)
