"""Watch a GPT-2 in PostgreSQL: it writes, shows what it thinks, learns your kind of text, and forgets by ROLLBACK.

Loads the model postgresql-docs, which ships with pg_gpt2, and makes it the default of the database (pg_gpt2.model).
Connect as the owner of the database, which must have the extension pg_gpt2.
"""

import time
from itertools import accumulate
from pathlib import Path

import psycopg

from ..common import LoaderError, arguments, run
from .story import QUICK, Size, tell

BEGAN = time.perf_counter()
MOST_CHARACTERS = 4_000_000  # of a file: takes seconds to tokenize, and is more than can be learned from in a minute


def main() -> None:
    """Parse the command line and show it."""
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, help="a file of your kind of text, one example a line, to learn from")
    parser.add_argument("--no-pauses", action="store_true", help="on a terminal: no time to read between chapters")
    parser.add_argument("--quick", action="store_true", help="a few seconds, too little for good text")
    args = parser.parse_args()
    texts = [line.strip() for line in args.text.read_text("utf-8").splitlines() if line.strip()] if args.text else []
    if args.text and len(" ".join(texts).split()) < 20:
        raise LoaderError(f"{args.text} has fewer than 20 words; a few lines of text are needed")
    with psycopg.connect(args.dsn, autocommit=True, client_encoding="utf8", application_name="pg_gpt2 demo") as conn:
        kept = texts[: sum(end <= MOST_CHARACTERS for end in accumulate(map(len, texts)))] or texts[:1]
        size, pauses = QUICK if args.quick else Size(), not (args.quick or args.no_pauses)
        tell(conn, size, kept, began=BEGAN, pauses=pauses, left_out=len(texts) - len(kept))


if __name__ == "__main__":
    run(main)
