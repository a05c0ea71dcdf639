"""A session as psql would show it: statements, tables, NOTICEs; and text that is printed as it comes.

Coloured on a terminal, plain elsewhere or when NO_COLOR is set.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from typing import Any

import psycopg
from psycopg import sql

BOLD, DIM, GREEN, CYAN = "1", "2", "32", "36"
WORDS_A_SECOND, GLANCE = 5, 2.0  # how fast a remark is read; seconds for what stands around it
BARS = "▁▂▃▄▅▆▇█"


class Console:
    """Runs statements on `conn` and prints them and what they return on stdout."""

    def __init__(self, conn: psycopg.Connection, *, pauses: bool = False) -> None:
        self.conn = conn
        self.first_text: float | None = None  # when the first token came, as time.perf_counter() tells
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._pauses = pauses and self.live
        self._read_until = 0.0
        self.coloured = self.live and "NO_COLOR" not in os.environ
        self.width = min(100, shutil.get_terminal_size((100, 24)).columns)

    def paint(self, text: str, colour: str) -> str:
        """`text` in a colour, if colours are wanted."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.coloured and text else text

    def write(self, text: str) -> None:
        """Print at once, without a line end."""
        sys.stdout.write(text)
        sys.stdout.flush()

    # ---- what the viewer is told

    def title(self, text: str) -> None:
        """Show the heading of a chapter."""
        self.write(f"\n{self.paint(text, BOLD)}\n{self.paint('─' * len(text), DIM)}\n")

    def say(self, text: str) -> None:
        """Show a remark, wrapped."""
        words = Words(self)
        for word in text.split():
            words.add(f" {word}" if words.column else word)
        words.end()
        self._read_until = max(time.perf_counter(), self._read_until) + len(text.split()) / WORDS_A_SECOND

    def pause(self) -> None:
        """On a terminal: wait until there was time to read what was said."""
        if self._pauses:
            time.sleep(max(0.0, self._read_until + GLANCE - time.perf_counter()))

    def shell(self, text: str) -> None:
        """Show the command line that would do what happens next."""
        self.write(self.paint("$ ", DIM) + self.paint(text, CYAN) + "\n")

    def statement(self, text: str, remark: str = "") -> None:
        """Show a statement as typed into psql, whose prompt tells whether a transaction is open."""
        open_ = "*" if self.conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS else ""
        for number, line in enumerate(f"{cleandoc(text)};".split("\n")):
            prompt = f"{self.conn.info.dbname}{'-' if number else '='}{open_}# "
            self.write(("\n" if number else "") + self.paint(prompt, DIM) + self.paint(line, CYAN))
        self.write(self.paint(f"  -- {remark}" if remark else "", DIM) + "\n")

    def table(self, names: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[bool]) -> None:
        """Show rows under the names of their columns, aligned as psql does."""
        cells = [["" if value is None else str(value).replace("\n", "⏎") for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        heads = [name.center(width) for name, width in zip(names, widths, strict=True)]
        self.write(f" {' | '.join(heads)} ".rstrip() + "\n")
        self.write(self.paint("-" + "-+-".join("-" * width for width in widths) + "-", DIM) + "\n")
        for row in cells:
            aligned = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
            self.write(f" {' | '.join(aligned)}".rstrip() + "\n")
        self.write("\n")

    # ---- what is run

    def value(self, text: str, *args: Any) -> Any:
        """Run a query without showing it; its first value, or None."""
        row = self.conn.execute(sql.SQL(text), args or None).fetchone()
        return row[0] if row else None

    def copy(self, text: str, rows: Iterable[Sequence[str]]) -> None:
        """Show and run a COPY FROM STDIN of texts."""
        self.statement(text)
        with self.conn.cursor() as cursor:
            with cursor.copy(sql.SQL(text)) as copy:
                for row in rows:
                    copy.write_row([value.strip() for value in row])
            self.write(f"{cursor.statusmessage}\n")

    def run(self, text: str) -> list[tuple[Any, ...]]:
        """Show a statement, run it, and show its rows, or its command tag; the rows."""
        self.statement(text)
        cursor = self.conn.execute(sql.SQL(cleandoc(text)))
        if cursor.description is None:
            self.write(f"{cursor.statusmessage}\n")
            return []
        rows = cursor.fetchall()
        if any(value != "" for row in rows for value in row):  # not what a function without result returns
            numeric = {info.oid for name in NUMBERS if (info := psycopg.adapters.types.get(name))}
            self.table([c.name for c in cursor.description], rows, [c.type_code in numeric for c in cursor.description])
        return rows

    def generate(self, prompt: str, options: str) -> None:
        """Show a generation through a cursor, each token as it arrives."""
        query = f"SELECT (llm_generate_stream({literal(prompt)}, {options})).*"
        self.statement("BEGIN")
        with self.conn.transaction(), self.conn.cursor("story", scrollable=False) as cursor:
            self.statement(f"DECLARE story CURSOR FOR\n{query}")
            self.statement("FETCH 1 FROM story", "once for each token")
            began = time.perf_counter()
            cursor.itersize = 1
            cursor.execute(sql.SQL(query))
            first, shown, words = 0.0, prompt, Words(self)
            words.add(prompt, BOLD)
            for _step, _id, _token, text, *_ in cursor:
                first = first or time.perf_counter() - began
                self.first_text = self.first_text or time.perf_counter()
                words.add(text[len(shown) :], GREEN)
                shown = text
            seconds = time.perf_counter() - began
            tokens = cursor.rownumber
        words.end()
        self.write(self.paint(f"({tokens} tokens in {seconds:.2f} s, the first after {first:.2f} s)\n\n", DIM))

    @contextmanager
    def notices(self, handler: Any) -> Iterator[None]:
        """Within this context, `handler(message)` is called for every NOTICE as it arrives."""

        def handle(diagnostic: psycopg.errors.Diagnostic) -> None:
            handler(diagnostic.message_primary or "")

        self.conn.add_notice_handler(handle)
        try:
            yield
        finally:
            self.conn.remove_notice_handler(handle)


NUMBERS = ("int2", "int4", "int8", "float4", "float8", "numeric", "oid")


def literal(text: str) -> str:
    """`text` as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def sparkline(values: Iterable[float], width: int) -> str:
    """Values as a line of bars, at most `width` of them, from the lowest to the highest."""
    values = list(values)
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[int((value - low) / span * 7.99) if span else 0] for value in means)


class Words:
    """Text that is printed piece by piece, at once, and wrapped at spaces to the width of the console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.column = 0

    def add(self, text: str, colour: str = "") -> None:
        """Print a piece; the space before a word that would pass the right edge becomes a line end."""
        for number, line in enumerate(text.split("\n")):
            if number:
                self._write("\n")
            for index, word in enumerate(line.split(" ")):
                if index and self.column + 1 + len(word) > self.console.width - 2:
                    self._write("\n")
                elif index:
                    self._write(" ")
                self._write(word, colour)

    def end(self) -> None:
        """End the line, if one was begun."""
        if self.column:
            self._write("\n")

    def _write(self, text: str, colour: str = "") -> None:
        self.console.write(self.console.paint(text, colour) if colour else text)
        self.column = 0 if text == "\n" else self.column + len(text)
