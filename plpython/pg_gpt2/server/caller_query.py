"""A query that a caller gives as `source`: read with the caller's rights and search_path."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import plpy

from ..errors import InvalidParameter
from . import db
from .sql_errors import server_error

FETCHED = 1 << 20  # characters that are asked for at a time, judged by those that came before
FIRST, MOST = 16, 256  # rows at a time
TEXTS = "SELECT body FROM documents"
KEYED = "SELECT id, body FROM documents"
PAIRS = "SELECT question, answer FROM faq"
LABELLED = "SELECT body, topic FROM labelled"
WITH_CHOICES = "SELECT question, answer, choices FROM quiz"

Keyed = tuple[str | None, str | None]  # key and text of a row
Weighted = tuple[str | None, str | None, float | None]  # prompt, completion and weight of a row
Labelled = tuple[str | None, str | None, list[str | None] | None]  # prompt, answer and choices of a row
Kinds = dict[str, str | None]  # what columns are called, and the category of their types; None: any
TEXT = "pg_catalog.text"
CATEGORIES = {"S": "a text", "N": "a number", "A": "an array of texts"}

_left: set[str] = set()  # cursors of the server whose readers stopped before their end


def source_texts(source: str, search_path: str) -> Iterator[str]:
    """Texts of a caller's query, which runs with the caller's rights under the caller's `search_path`; NULLs are skipped.

    The path is set only while the query runs, so that it cannot lead our own statements astray. Not across the rows of a set.
    """
    with _search_path(search_path):
        rows, columns = _open(source, TEXTS)
        names = [name for name, _ in columns]
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


def _not_one_text(names: list[str]) -> InvalidParameter:
    return InvalidParameter(
        f"source must return one text column, not ({', '.join(names)})", hint=f"Example: '{TEXTS}'."
    )


def keyed_texts(source: str, search_path: str) -> Iterator[Keyed]:
    """(key, text) of each row of a caller's query of two columns, with the caller's rights under the caller's `search_path`.

    The query begins with this call, so that errors come with it. A function that calls this must be VOLATILE, and may give rows
    of a set while it reads: between rows, where PL/Python may not have a cursor open, the query waits in a cursor of the server,
    which PL/Python does not know of. The server closes it with the transaction, or a savepoint that is rolled back; we do at its
    end. Where the reader stops early nothing can be called any more (see `entry`), and the next call closes it.
    """
    _close_what_was_left()
    name = f"pg_gpt2 {uuid.uuid4().hex}"
    with _search_path(search_path):
        rows, columns = _open(source, KEYED)
        rows.close()
    _require_key_and_text(columns)
    with _search_path(search_path), _only_reading(KEYED):
        query = _renamed(source, {"key": TEXT, "text": TEXT})
        plpy.execute(f"DECLARE {db.quote_identifier(name)} NO SCROLL CURSOR FOR {query}")
    return _rows_of(name, search_path)


def weighted_pairs(source: str, search_path: str) -> Iterator[Weighted]:
    """(prompt, completion, weight) of each row of a caller's query of two or three columns, as `source_texts` reads one.

    Without a third column all weights are 1. Columns go by their places: expressions without a name are all called ?column?.
    """
    kinds: Kinds = {"prompt": "S", "completion": "S", "weight": "N"}
    for row in _rows_of_columns(source, search_path, kinds, PAIRS):
        yield row["prompt"], row["completion"], _number(row.get("weight", 1))


def labelled(source: str, search_path: str, with_choices: bool) -> Iterator[Labelled]:
    """(prompt, answer, choices) of each row of a caller's query of three columns, or unless `with_choices` two, as
    `weighted_pairs` reads one.

    The answer is of any type, and comes as a text. Without a third column choices are None.
    """
    kinds: Kinds = {"prompt": "S", "answer": None, "choices": "A"}
    example, least = (WITH_CHOICES, 3) if with_choices else (LABELLED, 2)
    for row in _rows_of_columns(source, search_path, kinds, example, least):
        yield row["prompt"], row["answer"], row.get("choices")


def _rows_of_columns(
    source: str, search_path: str, kinds: Kinds, example: str, least: int = 2
) -> Iterator[dict[str, Any]]:
    """Rows of a query whose columns, all or the `least` first of them, are of these kinds, by these names.

    Arrays come as lists of texts, numbers as Python has them, all else as texts.
    """
    with _search_path(search_path):
        rows, columns = _open(source, example)
        rows.close()
    _require_columns(columns, kinds, example, least)
    types = {
        name: {"A": db.qualified("llm_texts"), "N": None}.get(kind or "", TEXT)
        for name, kind in [*kinds.items()][: len(columns)]
    }
    with _search_path(search_path):
        with _only_reading(example):
            rows = db.open_cursor(_renamed(source, types))
        batch = rows.fetch(100)
    while batch.nrows():
        yield from batch
        with _search_path(search_path):
            batch = rows.fetch(100)
    rows.close()


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:  # as of the type money, which comes as a text
        raise InvalidParameter(
            f"a weight of source is not a number: {value[:40]!r}", hint="Cast it to double precision in the query."
        ) from None


def _renamed(source: str, types: Mapping[str, str | None]) -> str:
    """A query for what `source` gives, its columns by other names and of other types; None leaves one as it is."""
    # What has been opened before is one statement, so its parentheses are balanced: it cannot end the one around it.
    columns = ", ".join(f"s.{name}{f'::{of_type}' if of_type else ''} AS {name}" for name, of_type in types.items())
    return f"SELECT {columns} FROM (\n{_without_its_end(source)}\n) AS s ({', '.join(types)})"


def _without_its_end(source: str) -> str:
    """One statement up to its semicolon, if it has one, after which there are comments at most.

    The server says where that is: between parentheses it is the first thing that is wrong.
    """
    if ";" not in source:
        return source
    before = "SELECT FROM (\n"
    try:
        plpy.prepare(f"{before}{source}\n) AS s")
    except plpy.spiexceptions.SyntaxError as error:  # all else, a cancel among it, is the caller's
        end = error.spidata[4] - 1 - len(before)  # from the position, counted in characters from 1
        if end >= 0 and source[end : end + 1] == ";":
            return source[:end]
    return source


@contextmanager
def _only_reading(example: str) -> Iterator[None]:
    """22023 for a source that does not fit in another query."""
    try:
        yield
    except plpy.SPIError as error:
        if error.sqlstate not in ("42601", "0A000"):
            raise
        raise InvalidParameter(
            f"source must be a query that only reads: {error}",
            hint=f"Example: '{example}'. Store the RETURNING rows in a table first, and select from that.",
        ) from None


def _rows_of(cursor: str, search_path: str) -> Iterator[Keyed]:
    count, at_end = FIRST, False
    try:
        while not at_end:
            with _search_path(search_path):
                batch = _fetch(cursor, count)
            at_end, size = len(batch) < count, 1
            for key, text in batch:
                size += len(key or "") + len(text or "")
                yield key, text
            count = max(1, min(MOST, 4 * count, count * FETCHED // size))
    except GeneratorExit:
        _left.add(cursor)
        raise
    _close(cursor)


def _fetch(cursor: str, count: int) -> list[Keyed]:
    try:
        found = plpy.execute(f"FETCH FORWARD {count} FROM {db.quote_identifier(cursor)}")
    except plpy.spiexceptions.InvalidCursorName as error:
        hint = "It ends with the savepoint in which the first row was fetched: fetch the first row before SAVEPOINT."
        raise server_error("the source was closed before its end", error.sqlstate, None, hint) from None
    return [(row["key"], row["text"]) for row in found]


def _close(cursor: str) -> None:
    plpy.execute(f"CLOSE {db.quote_identifier(cursor)}")


def _close_what_was_left() -> None:
    for cursor in _portals() & _left if _left else ():
        _close(cursor)
    _left.clear()


def _require_key_and_text(columns: list[tuple[str, int]]) -> None:
    """22023 unless there are two columns, the second of them of a type of texts."""
    names = ", ".join(name for name, _ in columns)
    if len(columns) != 2:
        raise InvalidParameter(
            f"source must return two columns, key and text, not ({names})", hint=f"Example: '{KEYED}'."
        )
    category, of_type = _type_of(columns[1])
    if category != "S":
        raise InvalidParameter(
            f"the second column of source, {columns[1][0]}, must be a text, not of type {of_type}",
            hint=f"The first column is a key of any type. Example: '{KEYED}'.",
        )


def _require_columns(columns: list[tuple[str, int]], kinds: Kinds, example: str, least: int) -> None:
    """22023 unless the columns, all or the `least` first, are of these kinds."""
    *first, last = kinds
    wanted = f"two columns, {' and '.join(first)}, or a third, {last}"
    if least == len(kinds):
        wanted = f"three columns, {', '.join(first)} and {last}"
    if not least <= len(columns) <= len(kinds):
        raise InvalidParameter(
            f"source must return {wanted}, not ({', '.join(name for name, _ in columns)})",
            hint=f"Example: '{example}'{f', or give the parameter {last}' if least == len(kinds) else ''}.",
        )
    for column, kind in zip(columns, kinds.values()):
        category, of_type = _type_of(column)
        if kind is not None and kind != category:
            raise InvalidParameter(
                f"column {column[0]} of source must be {CATEGORIES[kind]}, not of type {of_type}",
                hint=f"The columns are {', '.join(first)} and perhaps {last}. Example: '{example}'.",
            )


def _type_of(column: tuple[str, int]) -> tuple[str, str]:
    """Category and name of a column's type. Not under the caller's path: a statement of ours is kept for the session."""
    of_type = "SELECT typcategory, pg_catalog.format_type(oid, NULL) AS type FROM pg_catalog.pg_type WHERE oid = $1"
    found = db.row(of_type, ["pg_catalog.oid"], column[1]) or {}
    return found["typcategory"], found["type"]


def _open(source: str, example: str) -> tuple[Any, list[tuple[str, int]]]:
    """A cursor of PL/Python over `source`, and names and types of its columns. 22023 where it is not one query."""
    open_before = _portals()
    try:
        rows = db.open_cursor(source)
    except plpy.spiexceptions.InvalidCursorDefinition:
        raise InvalidParameter(
            "source must be one query", hint=f"Example: '{example}', without a second statement."
        ) from None
    except plpy.SPIError as error:
        if not error.sqlstate.startswith("42") or error.sqlstate == "42501":
            raise
        # not a query at all, or of something that is not there
        hint = f"source is the text of a query, such as '{example}'."
        raise server_error(f"source: {error}", error.sqlstate, None, hint) from None
    # What a cursor fetches is a dict a row, in which columns of one name are one, and has no colnames(); FETCH has.
    return rows, db.columns(max(_portals() - open_before))


def _portals() -> set[str]:
    """Names of the cursors that are open in this session."""
    return {row["name"] for row in db.query("SELECT name FROM pg_catalog.pg_cursors")}


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
