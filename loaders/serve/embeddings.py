"""/v1/embeddings: the hidden states of texts."""

import base64
from array import array
from collections.abc import Sequence
from typing import Any, TypedDict

from pg_llm_client import AsyncPGLLMClient

from .asked import within
from .database import Connection, Database
from .errors import ApiError
from .models import model_of
from .prompts import Prompt, read, several

MOST_INPUTS = 2048  # OpenAI's
# The texts of this request, which stand in a setting: the query itself is always the same.
SETTING = "pg_gpt2_serve.texts"
SOURCE = (
    "SELECT t.n, t.body FROM pg_catalog.jsonb_array_elements_text(pg_catalog.current_setting('pg_gpt2_serve.texts')::jsonb)"
    " WITH ORDINALITY AS t (body, n) ORDER BY t.n"
)
KEEP = "SELECT pg_catalog.set_config(%s, pg_catalog.to_jsonb(%s::text[])::text, true)"


class EmbeddingRequest(TypedDict, total=False):
    """OpenAI's parameters, and layer and pooling of llm_text_embedding."""

    model: str
    input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
    encoding_format: str
    dimensions: int
    user: str
    layer: int
    pooling: str


async def embeddings(database: Database, conn: Connection, given: EmbeddingRequest) -> dict[str, Any]:
    """The answer to a request."""
    form = given.get("encoding_format", "float")
    for name in ("model", "input"):
        if name not in given:
            raise ApiError(f"{name} must be given", param=name, code="missing_parameter")
    if form not in ("float", "base64"):
        raise ApiError("encoding_format must be float or base64", param="encoding_format", code="invalid_value")
    inputs = several(given["input"], "input")
    within(len(inputs), 1, MOST_INPUTS, "input", "the inputs of a request")
    model = await model_of(database, conn, given["model"])
    prompts = await read(database, conn, model.name, inputs)
    for each in prompts:
        _require_text(each, model.name)
    tokens = sum(len(each.ids) for each in prompts)
    await conn.execute(KEEP, (SETTING, [each.text for each in prompts]))
    client = AsyncPGLLMClient(conn, model=model.name)
    rows = client.embedding_rows(SOURCE, layer=given.get("layer"), pooling=given.get("pooling", "mean"))
    found = [row.embedding async for row in rows]
    data = [_described(number, each, form, given.get("dimensions")) for number, each in enumerate(found)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}


def _require_text(given: Prompt, model: str) -> None:
    """ApiError for what is empty, or token ids of no text."""
    if not given.text:
        raise ApiError("input must not be empty", param="input", code="invalid_value")
    if not given.spelled:
        raise ApiError(
            f"the token ids in input are not those that the tokenizer of {model} gives for a text; send the text itself",
            param="input",
            code="invalid_value",
        )


def _described(number: int, embedding: list[float] | None, form: str, dimensions: int | None) -> dict[str, Any]:
    """An embedding as the API has it; ApiError for a text that the model cannot read."""
    if embedding is None:
        raise ApiError(
            f"input {number} cannot be read by the model: it is too long", param="input", code="invalid_value"
        )
    if dimensions not in (None, len(embedding)):
        raise ApiError(
            f"dimensions must be {len(embedding)}, which the model has", param="dimensions", code="unsupported"
        )
    told: Any = embedding if form == "float" else base64.b64encode(array("f", embedding).tobytes()).decode()
    return {"object": "embedding", "index": number, "embedding": told}
