"""The pages of docs/how-to print what they say: half of all, in a file of their own."""

from tests.server.docs.pages import HOW_TO, PAGES, Session, check, numbered


@numbered(page for page in PAGES if page.startswith(HOW_TO))
def test_block_prints_what_the_page_says(session: Session, page: str, number: int) -> None:
    check(session, page, number)
