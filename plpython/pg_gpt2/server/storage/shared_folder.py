"""Where files lie that the sessions of a server share: with PostgreSQL's temporary files, under names that a restart removes and
base backups skip.

A name says whose the file is: of which installation, then of which model's weights, or that it is of vocabularies.
"""

import hashlib
import os
from collections.abc import Iterable

PREFIX, UNFINISHED, LOCK = "pgsql_tmp_pg_gpt2", ".new", "pgsql_tmp_pg_gpt2.lock"


def directory() -> str | None:
    """Where the server, whose working directory is its data directory, keeps temporary files; None if this is no server."""
    return os.path.join("base", "pgsql_tmp") if os.path.exists("PG_VERSION") and os.path.isdir("base") else None


def incarnation() -> str | None:
    """What tells this life of the server from others: process, start and shared memory, which is made anew after a crash too.

    Rows alone do not: with synchronous_commit = off a crash can lose a change whose transaction, place and command come again.
    """
    try:
        with open("postmaster.pid", encoding="utf-8") as file:
            lines = file.read().split("\n")
        return " ".join((lines[0], lines[2], lines[6]))  # as miscadmin.h or utils/pidfile.h numbers them
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def family(relation: str) -> str:
    """What the names of an installation's files begin with: the path of a file that the server has as long as that is there."""
    return f"{PREFIX}_{relation.replace('/', '-')}."


def stem(relation: str, model: str) -> str:
    """What the names of the files of a model's weights begin with."""
    return f"{family(relation)}{hashlib.md5(model.encode()).hexdigest()[:16]}."


def vocabularies(relation: str) -> str:
    """What the names of the files of vocabularies begin with."""
    return f"{family(relation)}vocabulary."


def remove_others(folder: str, relation: str, models: Iterable[str]) -> None:
    """Unlink the files of models that are not there any more; not those that are being written."""
    kept = (vocabularies(relation), *(stem(relation, model) for model in models))
    for name in _names(folder, family(relation)):
        if not name.startswith(kept) and not name.endswith(UNFINISHED):
            _unlink(folder, name)


def remove_abandoned(folder: str) -> None:
    """Unlink the files of databases and installations that were dropped, whichever database this is."""
    for name in _names(folder, f"{PREFIX}_"):
        path = name.removeprefix(f"{PREFIX}_").partition(".")[0].replace("-", "/")
        try:
            is_gone = os.stat(path).st_size == 0  # the server cuts it at once, and removes it at a checkpoint
        except (FileNotFoundError, NotADirectoryError):
            is_gone = True
        except OSError:
            is_gone = False
        if is_gone:
            _unlink(folder, name)


def remove(folder: str, beginning: str, but: str | None = None) -> int:
    """Unlink the files whose names begin with `beginning`, unless with `but`; how many there were."""
    names = _names(folder, beginning)
    return sum(_unlink(folder, name) for name in names if but is None or not name.startswith(but))


def _names(folder: str, beginning: str) -> list[str]:
    """Names in the folder; none where it cannot be read."""
    try:
        return [name for name in os.listdir(folder) if name.startswith(beginning)]
    except OSError:
        return []


def _unlink(folder: str, name: str) -> bool:
    try:
        os.unlink(os.path.join(folder, name))
    except OSError:
        return False
    return True
