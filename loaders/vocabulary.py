"""GPT-2 vocabularies: vocab.json with merges.txt, or tokenizer.json; to and from llm_bpe_vocab and llm_bpe_merges.

The `tokenizers` library parses and checks the files. What is not GPT-2's byte-level BPE is refused, since the server
would split text otherwise.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loaders.common import Database, LoaderError

END_OF_TEXT = "<|endoftext|>"


def _byte_alphabet() -> dict[str, int]:
    """Character of vocab.json -> byte: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def token_bytes(token: str) -> bytes:
    """The bytes a token stands for; an added token outside the alphabet stands for its own UTF-8."""
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and merges in order of rank."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    @classmethod
    def from_files(cls, vocab: Path, merges: Path) -> "Vocabulary":
        """From vocab.json and merges.txt (encoder.json and vocab.bpe in the original release)."""
        try:
            found = cls(*models.BPE.read_file(str(vocab), str(merges)))
        except Exception as error:  # the library raises nothing narrower
            raise LoaderError(f"{vocab} and {merges} are not a vocabulary and its merges: {error}") from None
        if not found.merges and not merges.read_bytes().strip():
            raise LoaderError(
                f'{merges} is empty; of a vocabulary without merges it has the line "#version: 0.2" alone'
            )
        found.tokenizer()
        return found

    @classmethod
    def from_tokenizer_json(cls, path: Path) -> "Vocabulary":
        """From tokenizer.json, added tokens included."""
        try:
            parsed = json.loads(Tokenizer.from_file(str(path)).to_str())
        except Exception as error:  # the library raises nothing narrower
            raise LoaderError(f"{path} is not a tokenizer.json: {error}") from None
        _refuse_other_tokenizers(parsed, path)
        model = parsed["model"]
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        added = {token["content"]: token["id"] for token in parsed["added_tokens"]}
        found = cls({**model["vocab"], **added}, merges)
        found.tokenizer()
        return found

    @classmethod
    def find(cls, source: Path) -> "Vocabulary":
        """From a tokenizer.json, or from a directory that has one or vocab.json and merges.txt; else LoaderError."""
        if source.is_file():
            return cls.from_tokenizer_json(source)
        for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (source / vocab).exists() and (source / merges).exists():
                return cls.from_files(source / vocab, source / merges)
        if (source / "tokenizer.json").exists():
            return cls.from_tokenizer_json(source / "tokenizer.json")
        raise LoaderError(f"{source} has neither vocab.json and merges.txt nor tokenizer.json")

    @classmethod
    def from_database(cls, database: Database, model: str) -> "Vocabulary | None":
        """The vocabulary stored for `model`, if there is one; an adapter uses that of its base."""
        model = database.base_of(model) or model
        ids: dict[str, int] = dict(
            database.execute("SELECT token, token_id FROM {llm_bpe_vocab} WHERE model = %s", model).fetchall()
        )
        merges = database.execute(
            'SELECT "left", "right" FROM {llm_bpe_merges} WHERE model = %s ORDER BY rank', model
        ).fetchall()
        return cls(ids, merges) if ids else None

    def tokenizer(self) -> Tokenizer:
        """An encoder to which all text is ordinary, `<|endoftext|>` included."""
        try:
            tokenizer = Tokenizer(models.BPE(self.ids, self.merges))
        except Exception as error:  # the library raises nothing narrower
            raise LoaderError(f"the merges do not fit the vocabulary: {error}") from None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def store(self, database: Database, model: str, *, replace: bool) -> None:
        """Insert it for `model`; LoaderError when the model has one and `replace` is false, or is an adapter."""
        if (base := database.base_of(model)) is not None:
            raise LoaderError(f'model "{model}" is an adapter, which uses the vocabulary of its base "{base}"')
        if replace:
            database.execute("DELETE FROM {llm_bpe_vocab} WHERE model = %s", model)
            database.execute("DELETE FROM {llm_bpe_merges} WHERE model = %s", model)
        elif database.execute("SELECT 1 FROM {llm_bpe_vocab} WHERE model = %s LIMIT 1", model).fetchone():
            raise LoaderError(f'model "{model}" has a vocabulary already; --truncate replaces it')
        database.copy(
            "llm_bpe_vocab",
            {"model": "text", "token_id": "int4", "token": "text", "bytes": "bytea"},
            ((model, number, token, token_bytes(token)) for token, number in self.ids.items()),
        )
        database.copy(
            "llm_bpe_merges",
            {"model": "text", "rank": "int4", "left": "text", "right": "text", "pair": "text"},
            ((model, rank, left, right, f"{left} {right}") for rank, (left, right) in enumerate(self.merges)),
        )

    def save(self, directory: Path, n_positions: int) -> None:
        """Write the files that GPT2Tokenizer of transformers reads."""
        tokenizer = self.tokenizer()
        tokenizer.model.save(str(directory))
        config: dict[str, Any] = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "model_max_length": n_positions,
        }
        if END_OF_TEXT in self.ids:
            tokenizer.add_special_tokens([END_OF_TEXT])
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _refuse_other_tokenizers(parsed: dict[str, Any], path: Path) -> None:
    model, splitter = parsed["model"], parsed.get("pre_tokenizer") or {}
    if model["type"] != "BPE" or splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True):
        raise LoaderError(f"{path} is not a byte-level BPE with GPT-2's pattern")
    if splitter.get("add_prefix_space"):
        raise LoaderError(f"{path} adds a space before the text (add_prefix_space), which GPT-2 does not")
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if parsed.get("normalizer") is not None or any(model.get(setting) for setting in settings):
        raise LoaderError(f"{path} normalizes text or sets one of {', '.join(settings)}, which GPT-2 does not")
