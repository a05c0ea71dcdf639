"""Turn PostgreSQL's HTML documentation into plain text for language models: one line a paragraph, one part a section.

Reads the pages of Debian's postgresql-doc-* package in the order of the book, by their "next" links. Navigation, tables
of contents, tables and index terms are left out; code stays as it stands. See the README beside this file for use and
licence.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

SEPARATOR = "===="  # a line of its own between sections; no section contains such a line

# Of the excerpt, in this order, until it is full: chapters by the name of their first page.
CHAPTERS = (
    "tutorial-start",
    "tutorial-sql",
    "tutorial-advanced",
    "mvcc",
    "indexes",
    "dml",
    "wal",
    "queries",
)

SKIPPED_CLASSES = {"navheader", "navfooter", "toc", "table", "informaltable", "indexterm", "refentry-toc", "footnotes"}
SKIPPED_PAGES = re.compile(
    r"release|bookindex|biblio|legalnotice|acronyms|errcodes-appendix|features|sql-keywords|contrib-"
)
VOID = {"br", "hr", "img", "meta", "link", "input", "col"}
BLOCKS = {"p", "li", "dt", "dd", "div", "h1", "h2", "h3", "h4", "h5", "table", "ul", "ol", "dl", "pre", "blockquote"}


class Page(HTMLParser):
    """One page: its title, the paragraphs and code blocks of its text, and the name of the `next` page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.next: str | None = None
        self.blocks: list[str] = []
        self._open: list[str] = []
        self._skipped_from: int | None = None  # depth of the element that is left out
        self._text: list[str] = []
        self._lists: list[int | None] = []  # the number of the last item, None in a bulleted list
        self._marker = ""
        self._code = False
        self.feed(html)
        self.close()
        self._finish_block()

    def prose(self) -> str:
        """Its text: paragraphs with blank lines between."""
        return "\n\n".join(self.blocks)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "link" and attributes.get("rel") == "next":
            self.next = attributes.get("href")
        if tag == "br":
            self._text.append("\n" if self._code else " ")
        if tag in VOID:
            return
        self._open.append(tag)
        classes = set((attributes.get("class") or "").split())
        if self._skipped_from is None and (classes & SKIPPED_CLASSES or tag in {"head", "script", "style"}):
            self._skipped_from = len(self._open)
        if tag in BLOCKS:
            self._finish_block()
        if tag in {"ul", "ol"}:
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li" and self._lists:
            number = self._lists[-1]
            self._lists[-1] = None if number is None else number + 1
            self._marker = "* " if number is None else f"{number + 1}. "
        elif tag == "pre":
            self._code = True

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if tag in BLOCKS:
            self._finish_block()
        if tag == "pre":
            self._code = False
        if tag in {"ul", "ol"}:
            self._lists.pop()
        if tag == "title":
            self.title = self.title.replace("\xa0", " ").strip()
        self._open.pop()
        if self._skipped_from is not None and len(self._open) < self._skipped_from:
            self._skipped_from = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "title":
            self.title += data
        elif self._skipped_from is None:
            self._text.append(data)

    def _finish_block(self) -> None:
        text = "".join(self._text).replace("\xa0", " ").replace("\u200b", "")
        self._text.clear()
        if self._code:
            text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
        else:
            text = " ".join(text.split())
            if text:
                text, self._marker = self._marker + text, ""
        if text.strip():
            self.blocks.append(text)


def pages(directory: Path) -> Iterator[tuple[str, Page]]:
    """The names and contents of all pages, in the order of the book."""
    name: str | None = "index.html"
    while name is not None:
        page = Page((directory / name).read_text(encoding="utf-8"))
        yield name.removesuffix(".html"), page
        name = page.next


def numbered_sections(directory: Path) -> Iterator[tuple[int, str, str, Page]]:
    """(number from 1 on, chapter, name, page) of every page that has prose; a chapter is the name of its first page."""
    chapter, number = "", 0
    for name, page in pages(directory):
        if re.match(r"(Chapter|Part|Appendix|Preface)\b", page.title):
            chapter = name
        prose = page.prose()
        if SKIPPED_PAGES.match(name) or len(prose) < 400:
            continue  # a page that only lists its sections says nothing
        if SEPARATOR in prose.split("\n"):
            raise SystemExit(f"{name}: contains the separator {SEPARATOR}")
        number += 1
        yield number, chapter, name, page


def sections(directory: Path) -> Iterator[tuple[str, str]]:
    """(chapter, text) of the same."""
    return ((chapter, page.prose()) for _, chapter, _, page in numbered_sections(directory))


def excerpt(directory: Path, limit: int) -> Iterator[str]:
    """Whole sections of CHAPTERS, `limit` bytes at most."""
    by_chapter: dict[str, list[str]] = {}
    for chapter, text in sections(directory):
        by_chapter.setdefault(chapter, []).append(text)
    missing = set(CHAPTERS) - set(by_chapter)
    if missing:
        raise SystemExit(f"{directory} has no chapters {', '.join(sorted(missing))}")
    for chapter in CHAPTERS:
        for text in by_chapter[chapter]:
            size = len(text.encode()) + len(SEPARATOR) + 2
            if size <= limit:
                limit -= size
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path, help="for example /usr/share/doc/postgresql-doc-15/html")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="everything, not an excerpt")
    parser.add_argument("--bytes", type=int, default=200_000, help="size of the excerpt (200000)")
    options = parser.parse_args()
    chosen = (text for _, text in sections(options.html)) if options.full else excerpt(options.html, options.bytes)
    text = f"\n{SEPARATOR}\n".join(chosen) + "\n"
    options.output.write_text(text, encoding="utf-8")
    print(
        f"{options.output}: {len(text.encode()):,} bytes, {text.count(chr(10) + SEPARATOR) + 1} sections",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
