"""GPT-2's tokenizer: text to token ids and back, with a vocabulary given as plain data.

Follows OpenAI's encoder.py, and Hugging Face `tokenizers` where that leaves a choice (see bpe_merge). No file or table is
read here, that is for formats.vocab and the store.
"""

import codecs
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .. import host
from ..errors import InconsistentData, InvalidParameter, LimitExceeded, NullNotAllowed, PgGpt2Error
from ..limits import MOST_BYTES, MOST_IDS, MOST_TRACED
from .added import AddedToken, AddedTokens
from .decimals import Decimals, few
from .long_texts import LONG, MOST_CHARACTERS, LongTexts
from .pretokenize import last_cut, pieces, pretokens, split
from .tables import BYTE_CHARACTERS, END_OF_TEXT, Tables, made_of
from .words import Words, gathered

MANY_TOKENS, BYTES_A_TOKEN = 1 << 22, 24  # from where room is asked for; in a list, and as an array of the server
FEW_TOKENS = 1 << 10  # fewer are written one by one
MANY_BYTES = 1 << 24  # decoded, from where room is asked for


_CHARACTER_OF = dict(enumerate(BYTE_CHARACTERS))
_BYTE_OF = {c: b for b, c in enumerate(BYTE_CHARACTERS)}


def token_text(data: bytes) -> str:
    """Bytes in the printable form of vocab.json, where a space is U+0120."""
    return data.decode("latin-1").translate(_CHARACTER_OF)


def token_bytes(token: str) -> bytes:
    """The bytes of a token of vocab.json; of one with characters that stand for no byte (an added token) its UTF-8."""
    try:
        return bytes([_BYTE_OF[c] for c in token])
    except KeyError:
        return token.encode()


class Token(NamedTuple):
    """A token in its text. Positions count from 0, as the rows of `wpe` do."""

    position: int
    token_id: int
    token: str  # printable form
    bytes: bytes


class Merge(NamedTuple):
    """A step of the encoding of a word: the token it made of a pair, wherever the pair was, and the word after it."""

    step: int  # from 1
    token_id: int | None  # None when the vocabulary lacks it
    merged: str  # printable form
    pieces: list[str]


class _TokenBytes(dict[int | None, bytes]):
    """The bytes of tokens by id, each looked up when it is first asked for."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self._ids, self._ends, self._data = tables.ids.data, tables.ends.data, tables.data.data

    def __missing__(self, token_id: int | None) -> bytes:
        place = len(self._ids) if token_id is None else bisect_left(self._ids, token_id)
        if place == len(self._ids) or self._ids[place] != token_id:
            raise KeyError(token_id)
        self[token_id] = found = bytes(self._data[self._ends[place - 1] if place else 0 : self._ends[place]])
        return found


class Tokenizer:
    """The tokenizer of a vocabulary, made of its `tables`."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.eos_token_id = tables.eos_token_id
        self.added = AddedTokens(tables.added)
        self._words = Words(tables, self._lacking)
        self._bytes = _TokenBytes(tables)
        self.kept: dict[Any, Any] = {}  # what others make of the vocabulary, which goes with it

    @classmethod
    def of(
        cls,
        tokens: Mapping[int, bytes],
        merges: Iterable[tuple[str, str]],
        eos_token_id: int | None = None,
        added: Mapping[int, AddedToken] | None = None,
    ) -> "Tokenizer":
        """From plain data: see tables.made_of."""
        return cls(made_of(tokens, merges, eos_token_id, added))

    def __len__(self) -> int:
        return len(self.tables.ids)

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """Id -> bytes of all tokens, in the order of their ids."""
        data, ends = self.tables.data.tobytes(), self.tables.ends.tolist()
        return dict(zip(self.tables.ids.tolist(), (data[start:end] for start, end in pairwise([0, *ends]))))

    @cached_property
    def _long_texts(self) -> LongTexts:
        return LongTexts(self._words)

    @cached_property
    def _decimals(self) -> Decimals:
        return Decimals(self.tables.ids)

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token."""
        return int(np.diff(self.tables.ends, prepend=0).max())

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. With `special`, special tokens such as `<|endoftext|>` are found in the text, else they are plain text."""
        ids: list[int] = []
        room = MANY_TOKENS
        for some in self._encoded(text, special):
            ids += some.tolist() if isinstance(some, np.ndarray) else some
            if len(ids) > room:
                room *= 2
                host.require_memory(BYTES_A_TOKEN * room, f"a text of more than {len(ids)} tokens")
        return ids

    def encode_array(self, text: str, special: bool = False) -> str:
        """Token ids as the text of an array of SQL, of at most MOST_IDS."""
        parts: list[str] = []
        count = 0
        for some in self._encoded(text, special):
            count += len(some)
            if count > MOST_IDS:
                raise InvalidParameter(
                    f"the text has more than {MOST_IDS} tokens, the most that an array takes",
                    hint="llm_tokenize gives a row for each token of any text, llm_token_count their number.",
                )
            parts.append(few(some) if isinstance(some, list) and len(some) < FEW_TOKENS else self._decimals.of(some))
        parts[-1:] = [part.removesuffix(",") for part in parts[-1:]]
        return "".join(["{", *parts, "}"])

    def count(self, text: str, special: bool = False) -> int:
        """Number of tokens of `text`."""
        return sum(map(len, self._encoded(text, special)))

    def tokenize(self, text: str, special: bool = False) -> Iterator[Token]:
        """The tokens of `text`, each with its printable form and its bytes; these are made one by one."""
        ids = self.encode(text, special)
        return (Token(n, i, self._token_text(i), self.token_bytes(i)) for n, i in enumerate(ids))

    def trace(self, word: str) -> Iterator[Merge]:
        """How `word` becomes tokens, a row a merge. The words of a longer text are merged one after another."""
        if len(word) > MOST_TRACED:  # each row has all pieces: quadratic
            raise InvalidParameter(
                f"a text of {len(word)} characters is too long for a trace, which takes {MOST_TRACED}",
                hint="Give a word or a sentence; llm_tokenize shows the tokens of any text.",
            )
        return self._merges(word)

    def _merges(self, word: str) -> Iterator[Merge]:
        done: list[str] = []
        step = 0
        for pretoken in self._pretokens(word):
            if isinstance(pretoken, int):
                done.append(self._token_text(pretoken))
                continue
            symbols = self._words.symbols(pretoken)
            pieces = [self._symbol_text(symbol) for symbol in symbols]
            for (_, merged), merges in groupby(self._words.merges(symbols), itemgetter(0, 2)):
                for _, place, _ in merges:
                    host.check_interrupts()
                    pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
                step += 1
                yield Merge(step, merged if merged >= 0 else None, self._symbol_text(merged), done + pieces)
            done += pieces

    def lacking(self, vocab: int) -> tuple[int, ...]:
        """The ids below `vocab` that are no tokens: rows of weights that only pad."""
        if ("lacking", vocab) not in self.kept:
            self.kept["lacking", vocab] = self.tables.lacking(vocab)
        return self.kept["lacking", vocab]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes((token_id,))

    def decode_bytes(self, ids: Iterable[int | None]) -> bytes:
        """The bytes of the tokens one after another; an id that the vocabulary lacks is an error."""
        ids = list(ids)
        try:
            if len(ids) * self._longest > MANY_BYTES:
                _require_room(sum(map(len, map(self._bytes.__getitem__, ids))))
            return b"".join(map(self._bytes.__getitem__, ids))  # nor has a null any
        except KeyError:
            raise self._unknown(ids) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; what is not UTF-8 becomes U+FFFD as in Python's errors='replace'. NUL stays NUL."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def last_cut(self, text: str) -> int:
        """The last place where a text may be encoded in two: whatever is appended, the ids before it stay. 0: none."""
        return next((start + cut for start, end in self.added.settled(text) if (cut := last_cut(text[start:end]))), 0)

    def _encoded(self, text: str, special: bool) -> Iterator[list[int] | np.ndarray]:
        """Ids of one piece of the text after another."""
        for part in self._parts(text, special):
            if isinstance(part, int):
                yield [part]
            elif LONG <= len(part) <= MOST_CHARACTERS:
                yield self._long_texts.ids(part)
            else:
                for words in gathered(split(part)):
                    yield list(chain.from_iterable(self._words.encode(words)))

    def _parts(self, text: str, special: bool) -> Iterator[str | int]:
        """The ids of the added tokens, and what is between them, in pieces."""
        if special and not self.added.any_special and END_OF_TEXT in text:
            raise InvalidParameter(
                f"the vocabulary has no token {END_OF_TEXT}",
                hint="Encode it as ordinary text (special => false), or add the token to the vocabulary.",
            )
        progress = host.Progress("encoding", "characters", len(text))
        for start, end, token in self.added.split(text, special):
            if token is not None:
                yield token
                continue
            for piece in pieces(text[start:end], MOST_CHARACTERS // 2):
                progress.at(start)
                yield piece
                start += len(piece)

    def _pretokens(self, text: str) -> Iterator[str | int]:
        """The pretokens of a text, and the ids of the tokens added between them."""
        for start, end, token in self.added.split(text, special=False):
            yield from pretokens(text[start:end]) if token is None else [token]

    def _lacking(self, symbol: int) -> PgGpt2Error:
        """The error for a symbol without a token that is left in a word."""
        return InconsistentData(
            f"the vocabulary of {len(self)} tokens lacks the token {self._symbol_text(symbol)!r}",
            hint="Text needs all 256 byte tokens, and every merge the token it makes: load the vocabulary and "
            "the merges that belong together.",
        )

    def _token_text(self, token_id: int) -> str:
        """A token as the vocabulary has it: in printable form, or what was added as it stands."""
        added = self.added.tokens.get(token_id)
        return token_text(self._bytes[token_id]) if added is None else added.content

    def _symbol_text(self, symbol: int) -> str:
        return token_text(self._bytes[symbol]) if symbol >= 0 else self.tables.missing[-symbol - 1]

    def _unknown(self, ids: list[int | None]) -> PgGpt2Error:
        """The error for the first id without a token."""
        place, token_id = next((n, token_id) for n, token_id in enumerate(ids, 1) if token_id not in self.tokens)
        if token_id is None:
            return NullNotAllowed(f"token id number {place} is null", hint="Leave nulls out: array_remove(ids, null).")
        return InvalidParameter(
            f"token id {token_id} is not in the vocabulary of {len(self)} tokens",
            hint=f"The ids of this vocabulary run from {self.tables.ids[0]} to {self.tables.ids[-1]}.",
        )


def _require_room(size: int) -> None:
    """Refuse more decoded bytes than a value takes (54000), or than there is memory for (53200)."""
    if size > MOST_BYTES:
        raise LimitExceeded(
            f"the tokens have {size} bytes, and a value takes {MOST_BYTES}", hint="Decode them in parts."
        )
    host.require_memory(3 * size, f"{size} bytes of tokens")  # joined, as text, and as a value of the server


class StreamDecoder:
    """Decodes ids as they come: gives the text that is complete and holds an unfinished character's bytes back.

    The parts joined are `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, often all of it, at times ''."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: '', or U+FFFD for a character that never ended."""
        return self._decoder.decode(b"", final=True)
