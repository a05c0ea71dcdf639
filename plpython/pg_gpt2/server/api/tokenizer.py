"""llm_encode and its family."""

import codecs
from collections.abc import Iterator
from typing import Any

from ... import host
from ...fast import slices
from ...tokenizer.bpe import Tokenizer
from ...tokenizer.words import BYTES_A_CHECK
from .. import db, vocabularies
from ..arrays import received
from ..entry import entry
from ..storage import store


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
