"""Writes outputs into pages: see pages.py."""

import os
import sys
from pathlib import Path

from tests.bench.clusters import Clusters
from tests.server.docs import pages
from tests.server.docs.pages import BLOCKS, PAGES, ROOT, Session, problem, read_page


def update(session: Session, page: str, renew: bool) -> None:
    """Write the outputs that are wrong, or with `renew` all, into a page."""
    text = read_page(page)
    for block, output in reversed(list(zip(BLOCKS[page], session.outputs(page), strict=True))):
        if block.output is None and problem(block, output):
            print(f"{page}:{block.line}: {output}", file=sys.stderr)
        elif block.loose == "rows" and problem(block, output):
            print(f"{page}:{block.line}: rows now are\n{output}", file=sys.stderr)
        elif block.loose != "rows" and block.output is not None and (renew or problem(block, output)):
            text = text[: block.span[0]] + output + "\n" + text[block.span[1] :]
    (ROOT / page).write_text(text, encoding="utf-8")


def main() -> None:
    wanted = sys.argv[2:] or PAGES
    if (
        sys.argv[1:2] not in (["--update"], ["--renew"])
        or set(wanted) - set(PAGES)
        or "PG_GPT2_TEST_DSN" not in os.environ
    ):
        sys.exit(pages.__doc__)
    with Clusters() as clusters:
        session = Session(os.environ["PG_GPT2_TEST_DSN"], Path(os.environ["PG_GPT2_TEST_DATA"]), clusters)
        for page in wanted:
            update(session, page, sys.argv[1] == "--renew")


if __name__ == "__main__":
    main()
