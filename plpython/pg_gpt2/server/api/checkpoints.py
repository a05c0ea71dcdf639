"""llm_checkpoint_save, _attach, _load, _list, _drop, _prune, _diff, llm_param_history: arguments from SQL, checked."""

from collections.abc import Iterator

from ...errors import InvalidParameter, UndefinedObject, require, require_positive
from .. import db
from ..entry import entry
from ..storage import checkpoint_files, checkpoint_removal, checkpoints, store, tensor_versions


@entry
def save(model: str, note: str, file_path: str | None) -> int:
    """A new checkpoint, in the database or in a file; its id."""
    require(model=model, note=note)
    if file_path is not None:
        return checkpoints.save_file(model, note, file_path)
    if note.endswith(checkpoint_files.SUFFIXES):
        db.notice(f'it is saved in the database, and "{note}" is its note: with file_path => it is saved in a file')
    return checkpoints.save(model, note)


@entry
def attach(file_path: str, model: str | None) -> int:
    """A file that holds a checkpoint, as one of this database; its id."""
    require(file_path=file_path)
    return checkpoints.attach(file_path, model)


@entry
def load(model: str, checkpoint_id: int) -> int:
    """Back to a checkpoint of the model; its step."""
    require(model=model, checkpoint_id=checkpoint_id)
    return checkpoints.go_back(model, checkpoint_id).step


@entry
def listed(model: str | None) -> list[db.Row]:
    """Rows of llm_checkpoint_list, of `model` or of all."""
    if model is not None:
        _require_known(model)
    return db.query(
        "SELECT id, model, step, run_id, to_jsonb(created_at) #>> '{}' AS created_at, note, n_params, bytes, file_path"
        " FROM {schema}.llm_checkpoint WHERE $1 IS NULL OR model = $1 ORDER BY id",
        ["text"],
        model,
    )


@entry
def drop(checkpoint_id: int) -> None:
    """Remove a checkpoint; an unknown one is refused (42704)."""
    require(checkpoint_id=checkpoint_id)
    found = checkpoints.find(checkpoint_id)
    if not checkpoint_removal.drop(found.model, [checkpoint_id]):
        raise UndefinedObject(f"checkpoint {checkpoint_id} does not exist", hint="Another session dropped it.")
    if found.file_path is not None:
        db.notice(f'the file "{found.file_path}" stays where it is')


@entry
def prune(model: str, keep_last: int, keep_every: int | None) -> int:
    """Remove old checkpoints; how many."""
    require(model=model, keep_last=keep_last)
    if keep_last < 0:
        raise InvalidParameter(f"keep_last must be 0 or more, not {keep_last}", hint="0 removes all in the database.")
    if keep_every is not None:
        require_positive(keep_every=keep_every)
    _require_known(model)
    return checkpoint_removal.drop(model, checkpoint_removal.prunable(model, keep_last, keep_every))


def _require_known(model: str) -> None:
    """Refuse (42704) a name, which may be misspelt, of no model and no checkpoint: that of an attached file may have no model."""
    if not db.row("SELECT 1 FROM {schema}.llm_checkpoint WHERE model = $1 LIMIT 1", ["text"], model):
        store.config(model)


@entry
def diff(a: int, b: int | None) -> list[tuple]:
    """Rows (name, changed, max_abs_diff, l2_norm, relative)."""
    require(a=a)
    return list(_diff(a, b))


def _diff(a: int, b: int | None) -> Iterator[tuple]:
    first = checkpoints.find(a)
    second = None if b is None else checkpoints.find(b)
    with (
        tensor_versions.Snapshot(first, first.model) as before,
        tensor_versions.Snapshot(second, first.model) as after,
    ):
        for name, difference in tensor_versions.diff(before, after):
            yield (name, *difference)


@entry
def history(model: str, name: str) -> list[tuple]:
    """Rows of llm_param_history."""
    require(model=model, name=name)
    return list(tensor_versions.history(model, name))
