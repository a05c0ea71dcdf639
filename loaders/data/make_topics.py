"""Take passages about ten topics from PostgreSQL's HTML documentation: rows (section, topic, body) of a CSV file.

The number of a section is that in the text of make_postgresql_docs.py --full, from which the model that ships learned.
A passage is the beginning of a paragraph of prose. The topic is that of the pages it is from.
"""

import argparse
import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from make_postgresql_docs import numbered_sections  # type: ignore[import-not-found]  # beside it, as a program is run

# Chapters by the name of their first page, and single pages of other chapters.
PAGES = {
    "authentication": "client-authentication libpq-pgpass",
    "backup": "backup app-pgbasebackup app-pgdump app-pg-dumpall app-pgreceivewal app-pgrestore app-pgverifybackup",
    "index": "indexes btree gist spgist gin brin hash-index sql-alterindex sql-createindex sql-reindex",
    "locks": "mvcc sql-lock sql-set-transaction",
    "performance": "performance-tips parallel-query jit geqo planner-stats-details sql-explain",
    "privileges": "user-manag ddl-priv ddl-rowsecurity sql-alterdefaultprivileges sql-alterrole sql-createpolicy"
    " sql-createrole sql-droprole sql-grant sql-revoke sql-set-role",
    "replication": "high-availability logical-replication sql-alterpublication sql-altersubscription"
    " sql-createpublication sql-createsubscription",
    "search": "textsearch",
    "triggers": "triggers event-triggers plpgsql-trigger sql-createeventtrigger sql-createtrigger",
    "types": "datatype",
}
TOPICS = {page: topic for topic, pages in PAGES.items() for page in pages.split()}
SHORTEST, LONGEST = 80, 240  # characters of a passage


def passage(block: str) -> str:
    """The first sentences of a paragraph, whole ones, without those that only refer; empty if that is too little."""
    if "\n" in block:
        return ""  # code
    text = ""
    for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", re.sub(r"^(\* |\d+\. )", "", block)):
        if re.search(r"(Section|Chapter|Part) \d", sentence):
            continue
        if len(text) + 1 + len(sentence) > LONGEST:
            break
        text = f"{text} {sentence}".strip()
    return text if len(text) >= SHORTEST and re.match(r"[A-Z].*\.$", text) else ""


def passages(directory: Path) -> Iterator[tuple[int, str, str]]:
    """(section, topic, body), each body once, in the order of the book."""
    seen: set[str] = set()
    for section, chapter, name, page in numbered_sections(directory):
        topic = TOPICS.get(name) or TOPICS.get(chapter)
        if topic is None:
            continue
        for block in page.blocks[1:]:  # the first is the title
            body = passage(block)
            if body and body not in seen:
                seen.add(body)
                yield section, topic, body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path, help="for example /usr/share/doc/postgresql-doc-15/html")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = list(passages(options.html))
    missing = set(PAGES) - {topic for _, topic, _ in rows}
    if missing:
        raise SystemExit(f"{options.html} has nothing about {', '.join(sorted(missing))}")
    with options.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("section", "topic", "body"))
        writer.writerows(rows)
    counts = ", ".join(f"{topic} {n}" for topic, n in sorted(Counter(topic for _, topic, _ in rows).items()))
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, {len(rows)} passages: {counts}", file=sys.stderr)


if __name__ == "__main__":
    main()
