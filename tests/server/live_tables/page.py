"""What docs/how-to/live-tables.md shows, and what its tests share."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable

import psycopg

from tests.server import psql
from tests.server.docs.pages import read_page

PAGE = re.findall(r"^```(?:sql|sh|ini)\n(.*?)^```", read_page("docs/how-to/live-tables.md"), re.MULTILINE | re.DOTALL)
WORDS = ["How", "does", "the", "planner", "choose", "between", "an", "index", "and", "a", "scan", "of", "the", "table"]
# Without AVX-512 texts that share a pass have other last digits than one alone.
WRONG = """
    SELECT q.* FROM live_question AS q, LATERAL (SELECT
        llm_classify(body || E'\\nThe problem is with the ', ARRAY['backup', 'index', 'privileges', 'replication'],
                     model_name => 'postgresql-docs') AS topic,
        llm_perplexity(body, 'postgresql-docs') AS perplexity,
        llm_text_embedding(body, model_name => 'postgresql-docs') AS embedding
    ) AS v
    WHERE q.topic IS DISTINCT FROM v.topic
        OR q.model_step IS DISTINCT FROM (SELECT step FROM llm_models WHERE model = 'postgresql-docs')
        OR (q.perplexity IS NULL, q.embedding IS NULL) <> (v.perplexity IS NULL, v.embedding IS NULL)
        OR abs(q.perplexity / v.perplexity - 1) > 1e-4 OR llm_cosine(q.embedding, v.embedding) < 0.99999
"""
Database = Callable[[], str]


def shown(beginning: str) -> str:
    """The block of the page that has a line which begins so."""
    (block,) = [block for block in PAGE if re.search(f"^{re.escape(beginning)}", block, re.MULTILINE)]
    return block


def pasted(dsn: str, *blocks: str) -> None:
    """Paste blocks of the page into psql."""
    subprocess.run(
        [psql.program(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-o", os.devnull],
        input="".join(blocks), text=True, check=True,
    )  # fmt: skip


def one(conn: psycopg.Connection, query: str, *values: object) -> object:
    row = conn.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def eventually(holds: Callable[[], object], seconds: float) -> None:
    """Wait until it does, also while there is no server."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            if holds():
                return
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
