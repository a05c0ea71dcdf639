"""Watch a GPT-2 being made inside PostgreSQL: it learns from the manual, writes, and forgets by ROLLBACK.

Makes the table postgresql_docs and the model demo, replacing those of an earlier demonstration, and makes that model the
default of the database (pg_gpt2.model). Connect as the owner of the database, which must have the extension pg_gpt2.
"""

import psycopg

from ..common import arguments, run
from .story import QUICK, Size, tell


def main() -> None:
    """Parse the command line and show it."""
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a model too small to learn anything, in a few seconds")
    args = parser.parse_args()
    with psycopg.connect(args.dsn, autocommit=True, client_encoding="utf8", application_name="pg_gpt2 demo") as conn:
        tell(conn, QUICK if args.quick else Size())


if __name__ == "__main__":
    run(main)
