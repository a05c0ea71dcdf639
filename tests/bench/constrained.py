"""Rows about text that is constrained: JSON under a schema, beside as many tokens that are free."""

import json
from functools import partial
from typing import Any

from harness import Bench
from ours import MODEL, Session, timed
from report import US

PROMPT, MOST = 32, 128
FREE = "free decoding"
TEXTS = {"type": "object", "properties": {name: {"type": "string"} for name in ("summary", "detail")}}
TICKET = {
    "type": "object",
    "properties": {
        "product": {"enum": ["web shop", "mobile app", "delivery"]},
        "customer_is_waiting": {"type": "boolean"},
        "priority_from_1_to_5": {"type": "integer", "minimum": 1, "maximum": 5},
        "reported_on": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "amount_in_dispute": {"type": "number", "minimum": 0, "maximum": 9999.99},
        "subject_of_the_message": {"type": "string", "maxLength": 60},
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 4},
    },
}


def json_schema(bench: Bench) -> None:
    """JSON that is mostly text, and a row with much that is forced: seconds a token, constrained and free."""
    with bench.server.plain_session() as session:
        session.generate(bench.ids(PROMPT), 2)
        for key, what, schema in (("json text", "of long texts", TEXTS), ("json row", "of a row of a table", TICKET)):
            row = bench.row(key, f"JSON {what}, prompt {PROMPT}, up to {MOST} new", "tokens/s", rate=True)
            options = json.dumps({"json_schema": schema | {"required": list(schema["properties"])}})  # type: ignore[call-overload]
            ids = bench.ids(PROMPT)
            _generate(session, ids, MOST, options)  # what is known of a schema's states is kept
            bench.wait()
            seconds, found = timed(partial(_generate, session, ids, MOST, options))
            row.add(US, seconds / len(found))
            seconds, found = timed(partial(session.generate, ids, len(found)))
            row.add(FREE, seconds / len(found))


def _generate(session: Session, ids: list[int], count: int, options: str) -> Any:
    query = (
        "SELECT llm_generate_tokens(%s::int[], %s, temperature => 0, model_name => %s, eos_token => -1, options => %s)"
    )
    return session.value(query, ids, count, MODEL, options)
