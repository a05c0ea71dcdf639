"""llm_encode and its family, and where vocabularies come from."""

import codecs
from collections.abc import Iterator
from typing import Any

from ... import host
from ...errors import InvalidParameter, require
from ...fast import slices
from ...formats import vocab as vocab_files
from ...tokenizer import bpe_train
from ...tokenizer.bpe import Tokenizer
from ...tokenizer.words import BYTES_A_CHECK
from .. import db, resources, vocabularies
from ..arrays import received
from ..caller_query import source_texts
from ..entry import entry, require_trigger_of
from ..storage import server_files, store

MAX_FILE_BYTES = 8 << 20  # of vocab.json or merges.txt: GPT-2's have 1 MB, and json.loads cannot be cancelled
BYTES_A_BYTE = 25  # that one of such a file takes as strings of Python


def _tokenizer(model: str | None) -> Tokenizer:
    name = store.model_name(model)
    found = vocabularies.find(name)
    if found is None and model is None:
        name = store.only_model() or name
    return found or vocabularies.tokenizer_of(name)


@entry
def encode(text: str | None, model: str | None, special: bool | None) -> str | None:
    """Token ids, in the text form of an array."""
    return None if text is None else _tokenizer(model).encode_array(text, bool(special))


@entry
@received(ids="integer")
def decode(ids: list[int | None] | None, model: str | None, as_text: bool) -> bytes | None:
    """Bytes of ids; `as_text`, U+FFFD in the place of what a text cannot hold."""
    if ids is None:
        return None
    data = _tokenizer(model).decode_bytes(ids)  # which says where a null is
    return b"".join(_as_text(data)) if as_text else data


def _as_text(data: bytes) -> Iterator[bytes]:
    """What UTF-8 can hold of `data`, without U+0000, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in slices.pieces(len(data), BYTES_A_CHECK):
        host.check_interrupts()
        yield db.storable(decoder.decode(data[part])).encode()
    yield decoder.decode(b"", final=True).encode()


@entry
def tokenize(text: str | None, model: str | None, special: bool | None) -> Iterator[Any]:
    """Rows (position, token_id, token, bytes)."""
    return iter(()) if text is None else _tokenizer(model).tokenize(text, bool(special))


@entry
def count(text: str | None, model: str | None, special: bool | None) -> int | None:
    """Number of tokens."""
    return None if text is None else _tokenizer(model).count(text, bool(special))


@entry
def trace(word: str | None, model: str | None) -> Iterator[Any]:
    """Rows (step, token_id, merged, pieces)."""
    return iter(()) if word is None else _tokenizer(model).trace(word)


@entry
def train(source: str, vocab_size: int, model: str, source_path: str) -> int:
    """Learn a vocabulary from a query's texts; its size."""
    require(source=source, vocab_size=vocab_size)
    store.require_name(model)
    store.lock(model)
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
