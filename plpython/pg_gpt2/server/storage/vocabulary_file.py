"""The tables of a large vocabulary in a file that all sessions map: each would need a tenth of a second to make them of the rows,
and 20 MB.

All vocabularies of a database have one version, so that whoever writes the file of one removes those of earlier versions of all.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from ...tokenizer.added import AddedToken
from ...tokenizer.tables import Tables
from . import shared_folder, store
from .shared_file import Arrays, SharedFile, kinds_of

LEAST_TOKENS = 1 << 12  # a smaller vocabulary is as fast made of its rows
WAIT = 5.0  # seconds, for whoever makes it
PLAIN = "plain"  # of the arrays: what is none, as JSON


def file_of(model: str, version: str) -> SharedFile | None:
    """The file of a version of a vocabulary, be it there or not; None where none can be, as for a version of one word, which is
    that of the rows that a policy shows to a role."""
    folder, life = shared_folder.directory(), shared_folder.incarnation()
    seen, _, changes = version.partition(" ")
    if folder is None or life is None or not changes:
        return None
    code = __name__.partition(".")[0]  # tables are of the code that made them
    part = "." + hashlib.md5(f"{seen} {model}".encode()).hexdigest()[:16]
    return SharedFile(folder, shared_folder.vocabularies(store.modules_path()), f"{changes} {life} {code}", part)


def attached(file: SharedFile) -> Tables | None:
    """The tables in the file, or None when there is none."""
    arrays = file.attach()
    return None if arrays is None else _tables(arrays)


def build(file: SharedFile, tables: Tables, is_right: Callable[[], bool]) -> Tables | None:
    """Write the file and attach it; None where it cannot be, or where the tables then turn out not to be right."""
    arrays = tables.arrays
    plain = {name: value for name, value in tables._asdict().items() if name not in arrays}
    shared_folder.remove_abandoned(shared_folder.directory() or "")
    arrays[PLAIN] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
    written = file.build(kinds_of(arrays), arrays.items(), is_right)
    return None if written is None else _tables(written)


def forget() -> None:
    """Remove the files of all vocabularies of this database; whoever still sees one makes its file again."""
    if folder := shared_folder.directory():
        shared_folder.remove(folder, shared_folder.vocabularies(store.modules_path()))


def _tables(arrays: Arrays) -> Tables:
    plain: dict[str, Any] = json.loads(arrays.pop(PLAIN).tobytes())
    plain["added"] = {int(token_id): AddedToken(*token) for token_id, token in plain["added"].items()}
    return Tables(**(arrays | plain))
