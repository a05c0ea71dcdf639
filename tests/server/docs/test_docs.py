"""Pages print what they say (those of docs/how-to: test_docs_how_to.py), links lead somewhere, and the reference is complete."""

import os
import re

import psycopg
import pytest

from tests.server.docs.pages import HOW_TO, PAGES, ROOT, Session, blocks_of, check, needed, numbered, problem, read_page

EXAMPLE = re.compile(r"^-- (\w+)$", re.MULTILINE)
MEMBERS = (
    "SELECT d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid"
    " WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_gpt2'"
)


@numbered(page for page in PAGES if not page.startswith(HOW_TO))
def test_block_prints_what_the_page_says(session: Session, page: str, number: int) -> None:
    check(session, page, number)


@pytest.mark.parametrize(
    ("page", "versions"),
    [
        ("<!-- needs PostgreSQL 15 (lists) -->\n```sql\nSELECT 1;\n```\n", [15]),
        ("```sql\nSELECT 1; -- needs PostgreSQL 16\n```\n\n```sql\nSELECT 2;\n```\n", [16, 0]),
        ("Since PostgreSQL 15.\n\n```sql\nSELECT 1;\n```\n", [0]),
    ],
)
def test_a_page_or_a_block_says_which_version_it_needs(page: str, versions: list[int]) -> None:
    assert [needed(page, block) for block in blocks_of(page)] == versions


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
    [
        ("SELECT 1 AS n WHERE false;\n", " n\n---\n(0 rows)", True),
        ("SELECT 1 AS n WHERE false; -- or none\n", " n\n---\n(0 rows)", False),
        ("SELECT 1 AS n;\n", " n\n---\n 1\n(1 row)", False),
        ("SELECT 1;\n--> 1\n", "1", False),
        ("SELECT 1;\nSELECT 2 WHERE false;\n--> 1\n", "1", True),
    ],
)
def test_an_example_that_returns_nothing_is_wrong(code: str, output: str, wrong: bool) -> None:
    (block,) = blocks_of(f"```sql\n{code}```\n")
    assert (problem(block, output) is not None) == wrong


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", read_page(page))
        if not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert broken == []


def anchors(page: str) -> set[str]:
    """What GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", read_page(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_headings() -> None:
    broken = [
        f"{page}: {target}#{anchor}"
        for page in PAGES
        for target, anchor in re.findall(r"\]\(((?:[^)#:\s]+\.md)?)#([^)]+)\)", read_page(page))
        if anchor not in anchors(os.path.relpath((ROOT / page).parent / target, ROOT) if target else page)
    ]
    assert broken == []


def test_the_index_lists_every_page() -> None:
    index = read_page("docs/README.md")
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/") and page != "docs/README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []


def test_the_readme_is_short_and_its_first_screen_shows_sql() -> None:
    lines = read_page("README.md").split("\n")
    assert len(lines) <= 300
    assert "```sql" in lines[:30]


def test_every_function_and_relation_is_in_the_reference_and_every_function_has_an_example(
    conn: psycopg.Connection,
) -> None:
    functions = conn.execute(
        f"SELECT DISTINCT p.proname FROM pg_proc AS p WHERE p.oid IN ({MEMBERS}) AND p.prorettype <> 'trigger'::regtype"
    )
    relations = conn.execute(
        f"SELECT c.relname FROM pg_class AS c WHERE c.oid IN ({MEMBERS}) AND c.relkind IN ('r', 'v')"
    )
    entries = re.split("^### ", read_page("docs/reference.md"), flags=re.MULTILINE)[1:]
    known = {text.split("\n")[0]: "```sql" in text for text in entries}
    with_example = {name for (name,) in functions if not name.endswith(("_sent", "_declared"))} - {"llm_boot"}
    assert sorted(name for name in with_example if not known.get(name)) == []
    assert sorted(name for (name,) in relations if name not in known) == []
    unused = [
        name
        for path in (ROOT / "docs/examples").iterdir()
        for name in EXAMPLE.findall(path.read_text())
        if name not in known
    ]
    assert unused == []
