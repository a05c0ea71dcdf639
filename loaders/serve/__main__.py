"""Serve the models of a database over HTTP: OpenAI's API, and a page in the browser.

It listens on this machine only, and changes nothing in the database, unless told otherwise. The API key can be given as
PG_GPT2_API_KEY, too, where a list of processes does not show it.
"""

import os
from contextlib import suppress
from importlib.util import find_spec

from ..common import Database, LoaderError, arguments, connect, run
from ..load_model import SHIPPED, HasWeights, load_model
from .settings import Settings

MODEL = "postgresql-docs"
MOST_PORT = 65535


def main() -> None:
    """Parse the command line and serve until interrupted."""
    settings, shipped = _parsed()
    for module in ("uvicorn", "starlette", "psycopg_pool", "jinja2"):
        if find_spec(module) is None:
            raise LoaderError(f"{module} is not installed; pip install 'pg_gpt2[serve]' brings what this command needs")
    with connect(settings.dsn) as conn:  # what is wrong with the database is told here, and at once
        database = Database(conn)
        if shipped:
            bring(database)
    from .run import serve

    serve(settings)


def bring(database: Database) -> None:
    """Load the model that ships, if it is not there; another may load it meanwhile."""
    if database.execute("SELECT 1 FROM {llm_param} WHERE model = %s LIMIT 1", MODEL).fetchone() is None:
        with suppress(HasWeights), database.conn.transaction():
            load_model(database, SHIPPED / MODEL, MODEL)


def _parsed() -> tuple[Settings, bool]:
    default = Settings()
    parser = arguments(__doc__)
    parser.add_argument("--host", default=default.host, help="address to listen at; default: %(default)s")
    parser.add_argument("--port", type=int, default=default.port, help="0 = any that is free; default: %(default)s")
    parser.add_argument(
        "--api-key", metavar="KEY", help="what requests must bring; needed at any but a loopback address"
    )
    parser.add_argument(
        "--role-header", metavar="NAME", help="header of a request that names its role, set by a proxy that you trust"
    )
    parser.add_argument("--allow-training", action="store_true", help="let requests write; otherwise they only read")
    parser.add_argument(
        "--pool-size",
        type=int,
        default=default.pool_size,
        metavar="N",
        help="generations at a time; default: %(default)s",
    )
    parser.add_argument(
        "--queue-size",
        type=int,
        default=default.queue_size,
        metavar="N",
        help="requests that wait for their turn; one more is told to come back; default: %(default)s",
    )
    parser.add_argument("--shipped", action="store_true", help=f"load {MODEL}, which ships, if it is not there")
    args = parser.parse_args()
    settings = Settings(
        dsn=args.dsn,
        host=args.host,
        port=args.port,
        api_key=args.api_key or os.environ.get("PG_GPT2_API_KEY") or None,
        role_header=args.role_header,
        allow_training=args.allow_training,
        pool_size=args.pool_size,
        queue_size=args.queue_size,
    )
    if not settings.on_loopback and settings.api_key is None:
        raise LoaderError(f"at {settings.host} others can connect: give an --api-key, or PG_GPT2_API_KEY")
    if settings.pool_size < 1 or settings.queue_size < 1:
        raise LoaderError("--pool-size and --queue-size must be 1 or more")
    if not 0 <= settings.port <= MOST_PORT:
        raise LoaderError(f"--port must be from 0 to {MOST_PORT}, not {settings.port}")
    return settings, args.shipped


if __name__ == "__main__":
    run(main)
