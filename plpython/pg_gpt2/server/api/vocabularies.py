"""Where vocabularies come from: learned, or loaded from files; and what tells of their changes."""

from typing import Any

from ...errors import InvalidParameter, require
from ...formats import vocab as vocab_files
from ...tokenizer import bpe_train
from .. import db, resources, vocabularies
from ..caller_query import source_texts
from ..entry import entry, require_trigger_of
from ..storage import locks, server_files, store

MAX_FILE_BYTES = 8 << 20  # of vocab.json or merges.txt: GPT-2's have 1 MB, and json.loads cannot be cancelled
BYTES_A_BYTE = 25  # that one of such a file takes as strings of Python


@entry
def train(source: str, vocab_size: int, model: str, source_path: str) -> int:
    """Learn a vocabulary from a query's texts; its size."""
    require(source=source, vocab_size=vocab_size)
    store.require_name(model)
    locks.lock(model)
    vocabularies.require_none(model)
    if store.has_weights(model) and vocab_size > (room := store.config(model).vocab):
        raise InvalidParameter(
            f'vocab_size {vocab_size} is more than the {room} tokens that the weights of model "{model}" are for',
            hint="Use that many or fewer, or learn the vocabulary before llm_init_model, which then takes its size.",
        )
    vocab, merges = bpe_train.train(source_texts(source, source_path), vocab_size)
    vocabularies.replace_tokens(model, vocab)
    vocabularies.replace_merges(model, merges)
    return len(vocab)


@entry
def changed(trigger: dict[str, Any]) -> None:
    """Trigger after a statement that changed a vocabulary or merges, or a row that a subscription received: a new version."""
    require_trigger_of(trigger, "AFTER", "llm_bpe_vocab", "llm_bpe_merges")
    vocabularies.touch()
    if trigger["level"] == "ROW":
        db.run("SELECT set_config('pg_gpt2.bpe_replicated', pg_current_xact_id()::text, true)")


@entry
def load_vocab(path: str, model: str) -> int:
    """vocab.json -> rows; their number."""
    store.require_name(model)
    vocab = vocab_files.parse_vocab(_read(path))
    vocabularies.replace_tokens(model, vocab)
    return len(vocab)


@entry
def load_merges(path: str, model: str) -> int:
    """merges.txt -> rows; their number."""
    store.require_name(model)
    merges = vocab_files.parse_merges(_read(path))
    vocabularies.replace_merges(model, merges)
    return len(merges)


def _read(path: str) -> bytes:
    data = server_files.read(path, MAX_FILE_BYTES)
    resources.require_memory(BYTES_A_BYTE * len(data), f'reading "{path}"')
    return data
