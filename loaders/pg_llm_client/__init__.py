"""Python client of pg_gpt2 for psycopg 3: `PGLLMClient(conn)`, and `AsyncPGLLMClient` for an asynchronous connection.

All work is done by the server's `llm_*` functions; the client names their parameters and gives typed results.
"""

from .aio import AsyncPGLLMClient
from .client import PGLLMClient
from .results import (
    BatchText,
    Beam,
    Choice,
    ChoiceEvaluation,
    ChosenRow,
    Confused,
    EmbeddingRow,
    PerplexityRow,
    StreamEvent,
    TextRow,
)

__all__ = [
    "AsyncPGLLMClient",
    "BatchText",
    "Beam",
    "Choice",
    "ChoiceEvaluation",
    "ChosenRow",
    "Confused",
    "EmbeddingRow",
    "PGLLMClient",
    "PerplexityRow",
    "StreamEvent",
    "TextRow",
]
