"""A query that a caller gives as `source`: one column of text, read with the caller's rights and search_path."""

from collections.abc import Iterator
from contextlib import contextmanager

import plpy

from ..errors import InvalidParameter
from . import db
from .sql_errors import server_error


def source_texts(source: str, search_path: str) -> Iterator[str]:
    """Texts of a caller's query, which runs with the caller's rights under the caller's `search_path`; NULLs are skipped.

    The path is set only while the query runs, so that it cannot lead our own statements astray.
    """
    with _search_path(search_path):
        open_before = _portals()
        try:
            rows = db.open_cursor(source)
        except plpy.spiexceptions.InvalidCursorDefinition:
            raise InvalidParameter(
                "source must be one query", hint="Example: 'SELECT body FROM documents', without a second statement."
            ) from None
        except plpy.SPIError as error:
            if not error.sqlstate.startswith("42") or error.sqlstate == "42501":
                raise
            # not a query at all, or of something that is not there
            hint = "source is the text of a query, such as 'SELECT body FROM documents'."
            raise server_error(f"source: {error}", error.sqlstate, None, hint) from None
        # What a cursor fetches is a dict a row, in which columns of one name are one, and has no colnames(); FETCH has.
        names = db.columns(max(_portals() - open_before))
        if len(names) != 1:
            raise _not_one_text(names)
        batch = rows.fetch(100)
    while batch.nrows():
        for fetched in batch:
            if not isinstance(value := fetched[names[0]], str | None):
                raise _not_one_text(names)
            if value is not None:
                yield value
        with _search_path(search_path):
            batch = rows.fetch(100)
    rows.close()


def _portals() -> set[str]:
    """Names of the cursors that are open in this session."""
    return {row["name"] for row in db.query("SELECT name FROM pg_catalog.pg_cursors")}


def _not_one_text(names: list[str]) -> InvalidParameter:
    return InvalidParameter(
        f"source must return one text column, not ({', '.join(names)})", hint="Example: 'SELECT body FROM documents'."
    )


@contextmanager
def _search_path(path: str) -> Iterator[None]:
    try:
        db.set_search_path(path)
    except plpy.spiexceptions.InvalidParameterValue as error:
        raise InvalidParameter(
            f"source_path: {error}", hint="source_path is written as SET search_path has it."
        ) from None
    try:
        yield
    finally:
        db.set_search_path(db.OUR_PATH)
