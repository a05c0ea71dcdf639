"""GPT-2's tokenizer: text to token ids and back, with a vocabulary given as plain data.

Follows OpenAI's encoder.py, and Hugging Face `tokenizers` where that leaves a choice (see bpe_merge). No file or table is
read here, that is for formats.vocab and the store.
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, chain, groupby, pairwise
from operator import add
from typing import Any, NamedTuple

import numpy as np

from .. import host
from ..errors import InconsistentData, InvalidParameter, LimitExceeded, NullNotAllowed, PgGpt2Error
from ..limits import MOST_IDS, MOST_TRACED
from .added import AddedToken, AddedTokens
from .bpe_merge import Ranks, merge_by_scan
from .pretokenize import last_cut, pretokens, split
from .words import Words, gathered

END_OF_TEXT = "<|endoftext|>"
MANY_TOKENS, BYTES_A_TOKEN = 1 << 22, 24  # from where room is asked for; in a list, and as an array of the server
MANY_BYTES = 1 << 24  # decoded, from where room is asked for
MOST_DECODED = (1 << 30) - (1 << 16)  # bytes of a value


def _byte_characters() -> list[str]:
    """GPT-2's printable character of each byte: printable Latin-1 is itself, the others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return [chr(b if b in printable else 0x100 + others.index(b)) for b in range(256)]


BYTE_CHARACTERS = _byte_characters()
_CHARACTER_OF = dict(enumerate(BYTE_CHARACTERS))
_CODE_OF = np.array([*map(ord, BYTE_CHARACTERS)], "<u2")
_BYTE_OF = {c: b for b, c in enumerate(BYTE_CHARACTERS)}


def token_text(data: bytes) -> str:
    """Bytes in the printable form of vocab.json, where a space is U+0120."""
    return data.decode("latin-1").translate(_CHARACTER_OF)


def token_texts(tokens: list[bytes]) -> list[str]:
    """The printable form of each of many, of which one by one would take most of the time of loading a vocabulary."""
    text = str(_CODE_OF[np.frombuffer(b"".join(tokens), np.uint8)].data, "utf-16-le")
    return [text[start:end] for start, end in pairwise(accumulate(map(len, tokens), initial=0))]


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


class _Symbols(dict[str, int]):
    """Printable form -> symbol: see Tokenizer. A string that has none gets one when it is asked for."""

    def __init__(self, known: Iterable[tuple[str, int]]) -> None:
        super().__init__(known)
        self.missing: list[str] = []

    def __missing__(self, token: str) -> int:
        self.missing.append(token)
        self[token] = symbol = -len(self.missing)
        return symbol


class Tokenizer:
    """A vocabulary: `tokens` id -> bytes; `merges` (left, right) in printable form, best first; `added` id -> how it is found in
    a text, of those that no merges make. `<|endoftext|>` is a special one, where nothing else is said of it.

    A symbol is a token id, or a negative number for a string that merges make and the vocabulary lacks (a truncated
    one): that is an error only when it remains in a word.
    """

    def __init__(
        self,
        tokens: Mapping[int, bytes],
        merges: Iterable[tuple[str, str]],
        eos_token_id: int | None = None,
        added: Mapping[int, AddedToken] | None = None,
    ) -> None:
        if not tokens:
            raise InconsistentData("the vocabulary has no tokens", hint="Load vocab.json first.")
        self.tokens = dict(sorted(tokens.items()))
        added = dict(added or {})
        order = sorted(self.tokens, key=added.__contains__)  # merges make one that was not added, where there is
        texts = token_texts([self.tokens[token_id] for token_id in order])
        self._symbols = _Symbols(zip(reversed(texts), reversed(order)))  # of several with one text, the first
        self.eos_token_id = self._symbols.get(END_OF_TEXT) if eos_token_id is None else eos_token_id
        end_of_text = self._symbols.get(END_OF_TEXT, self.eos_token_id)
        if end_of_text is not None and not any(token.content == END_OF_TEXT for token in added.values()):
            added.setdefault(end_of_text, AddedToken(END_OF_TEXT, special=True))
        self.added = AddedTokens(added)
        self._byte_symbols = [self._symbols[c] for c in BYTE_CHARACTERS]
        left, right = zip(*merges) if (merges := [*merges]) else ((), ())
        symbol = self._symbols.__getitem__
        self._ranks: Ranks = dict(zip(zip(map(symbol, left), map(symbol, right)), range(len(left))))
        self._merged = [*map(symbol, map(add, left, right))]  # by rank
        self._words = Words(self._byte_symbols, self._ranks, self._merged, self._lacking)
        self._longest = max(map(len, self.tokens.values()))
        self.kept: dict[Any, Any] = {}  # what others make of the vocabulary, which goes with it

    @classmethod
    def from_strings(
        cls, vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], eos_token_id: int | None = None
    ) -> "Tokenizer":
        """From what vocab.json and merges.txt hold."""
        return cls({token_id: token_bytes(token) for token, token_id in vocab.items()}, merges, eos_token_id)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids. With `special`, special tokens such as `<|endoftext|>` are found in the text, else they are plain text."""
        ids: list[int] = []
        room = MANY_TOKENS
        for some in self._encoded(text, special):
            ids += some
            if len(ids) > room:
                room *= 2
                host.require_memory(BYTES_A_TOKEN * room, f"a text of more than {len(ids)} tokens")
        return ids

    def encode_array(self, text: str, special: bool = False) -> str:
        """Token ids as the text of an array of SQL, of at most MOST_IDS."""
        parts: list[str] = []
        count = 0
        for words in self._words_of(text, special):
            part = f"{words}," if isinstance(words, int) else "".join(self._words.texts(words))
            parts.append(part)
            count += part.count(",")
            if count > MOST_IDS:
                raise InvalidParameter(
                    f"the text has more than {MOST_IDS} tokens, the most that an array takes",
                    hint="llm_tokenize gives a row for each token of any text, llm_token_count their number.",
                )
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
            for rank, merges in groupby(merge_by_scan(symbols, self._ranks, self._merged), lambda merge: merge[0]):
                for _, place in merges:
                    host.check_interrupts()
                    pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
                step += 1
                merged = self._merged[rank]
                yield Merge(step, merged if merged >= 0 else None, self._symbol_text(merged), done + pieces)
            done += pieces

    def lacking(self, vocab: int) -> tuple[int, ...]:
        """The ids below `vocab` that are no tokens: rows of weights that only pad."""
        if ("lacking", vocab) not in self.kept:
            self.kept["lacking", vocab] = tuple(i for i in range(vocab) if i not in self.tokens)
        return self.kept["lacking", vocab]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes((token_id,))

    def decode_bytes(self, ids: Iterable[int | None]) -> bytes:
        """The bytes of the tokens one after another; an id that the vocabulary lacks is an error."""
        ids = list(ids)
        try:
            if len(ids) * self._longest > MANY_BYTES:
                _require_room(sum(map(len, map(self.tokens.__getitem__, ids))))  # type: ignore[arg-type]
            return b"".join(map(self.tokens.__getitem__, ids))  # type: ignore[arg-type]  # a null has none, either
        except KeyError:
            raise self._unknown(ids) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; what is not UTF-8 becomes U+FFFD as in Python's errors='replace'. NUL stays NUL."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def last_cut(self, text: str) -> int:
        """The last place where a text may be encoded in two: whatever is appended, the ids before it stay. 0: none."""
        return next((start + cut for start, end in self.added.settled(text) if (cut := last_cut(text[start:end]))), 0)

    def _encoded(self, text: str, special: bool) -> Iterator[list[int]]:
        """Ids in lists of a piece of the text each."""
        for words in self._words_of(text, special):
            yield [words] if isinstance(words, int) else list(chain.from_iterable(self._words.encode(words)))

    def _words_of(self, text: str, special: bool) -> Iterator[list[str] | int]:
        """Words in lists of a piece of the text each, and the ids of the added tokens between them."""
        if special and not self.added.any_special and END_OF_TEXT in text:
            raise InvalidParameter(
                f"the vocabulary has no token {END_OF_TEXT}",
                hint="Encode it as ordinary text (special => false), or add the token to the vocabulary.",
            )
        progress = host.Progress("encoding", "characters", len(text))
        for start, end, token in self.added.split(text, special):
            if token is not None:
                yield token
            else:
                yield from gathered(split(text[start:end], progress, start))

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
        return token_text(self.tokens[token_id]) if added is None else added.content

    def _symbol_text(self, symbol: int) -> str:
        return token_text(self.tokens[symbol]) if symbol >= 0 else self._symbols.missing[-symbol - 1]

    def _unknown(self, ids: list[int | None]) -> PgGpt2Error:
        """The error for the first id without a token."""
        place, token_id = next((n, token_id) for n, token_id in enumerate(ids, 1) if token_id not in self.tokens)
        if token_id is None:
            return NullNotAllowed(f"token id number {place} is null", hint="Leave nulls out: array_remove(ids, null).")
        return InvalidParameter(
            f"token id {token_id} is not in the vocabulary of {len(self)} tokens",
            hint=f"The ids of this vocabulary run from {min(self.tokens)} to {max(self.tokens)}.",
        )


def _require_room(size: int) -> None:
    """Refuse more decoded bytes than a value takes (54000), or than there is memory for (53200)."""
    if size > MOST_DECODED:
        raise LimitExceeded(
            f"the tokens have {size} bytes, and a value takes {MOST_DECODED}", hint="Decode them in parts."
        )
    host.require_memory(3 * size, f"{size} bytes of tokens")  # joined, as text, and as a value of the server


class StreamDecoder:
    """Decodes ids as they come: gives the text that is complete and holds an unfinished character's bytes back.

    The parts joined are `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bytes:
        """The bytes held back."""
        return self._decoder.getstate()[0]

    def push(self, token_id: int) -> str:
        """The text that this token completes, often all of it, at times ''."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: '', or U+FFFD for a character that never ended."""
        return self._decoder.decode(b"", final=True)
