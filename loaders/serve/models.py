"""The models that can be served: those that the request's role sees, and that have weights and a vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .database import Connection, Database
from .errors import NoModel

# Of tables: our views are empty on PostgreSQL 14 where policies are active.
MODELS = """
    SELECT c.model, c.n_positions, a.base
    FROM {llm_model_config} AS c LEFT JOIN {llm_adapter} AS a USING (model)
    WHERE (%(name)s::text IS NULL OR c.model = %(name)s)
      AND (EXISTS (SELECT FROM {llm_param} AS p WHERE p.model = c.model)
        OR EXISTS (SELECT FROM {llm_param_share} AS s WHERE s.target_model = c.model))
      AND EXISTS (SELECT FROM {llm_bpe_vocab} AS v WHERE v.model = coalesce(a.base, c.model))
    ORDER BY c.model
"""


@dataclass(frozen=True)
class Model:
    """A model by its name; `window` is its longest context in tokens, `base` what it adapts."""

    name: str
    window: int
    base: str | None

    def described(self) -> dict[str, Any]:
        """As OpenAI's API has it, with what vLLM adds. The database does not know when a model was made."""
        own = {"id": self.name, "object": "model", "created": 0, "owned_by": "pg_gpt2"}
        return {**own, "root": self.base or self.name, "parent": self.base, "max_model_len": self.window}


async def all_models(database: Database, conn: Connection) -> Sequence[Model]:
    """All of them, by name."""
    return await _found(database, conn, None)


async def model_of(database: Database, conn: Connection, name: str) -> Model:
    """The one of that name; NoModel where there is none, or none for this role."""
    found = await _found(database, conn, name)
    if not found:
        raise NoModel(f'the model "{name}" does not exist; /v1/models lists those that do', param="model")
    return found[0]


async def _found(database: Database, conn: Connection, name: str | None) -> list[Model]:
    cursor = await conn.execute(database.query(MODELS), {"name": name})
    return [Model(*row) for row in await cursor.fetchall()]
