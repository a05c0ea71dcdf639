"""A vocabulary of the database, llm_bpe_vocab and llm_bpe_merges: from the files of a tokenizer, and to files again.

hub_tokenizer reads the files. Those that are written are opened by transformers and tokenizers, and read here again.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from pg_gpt2.tokenizer import bpe
from pg_gpt2.tokenizer.added import AddedToken
from pg_gpt2.tokenizer.tables import END_OF_TEXT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loaders import hub_tokenizer
from loaders.common import Database, LoaderError, as_loader_error

FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")  # of an added token, columns of llm_bpe_vocab


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, merges in order of rank, how the added ones are found in a text, the tokens of hub_tokenizer.ROLES, and the
    chat template, in Jinja."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[int, AddedToken] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if END_OF_TEXT in self.ids:  # a special one to the server, too, where nothing is said of it
            end_of_text = {self.ids[END_OF_TEXT]: AddedToken(END_OF_TEXT, special=True)}
            object.__setattr__(self, "added", end_of_text | self.added)

    @property
    def eos(self) -> int | None:
        """The token between texts, of a model whose configuration names none."""
        return self.roles.get("eos", self.ids.get(END_OF_TEXT))

    @classmethod
    def from_files(cls, vocab: Path, merges: Path) -> "Vocabulary":
        """From vocab.json and merges.txt (encoder.json and vocab.bpe in the original release)."""
        return cls._checked(hub_tokenizer.read_plain(vocab, merges))

    @classmethod
    def find(cls, source: Path) -> "Vocabulary":
        """From a tokenizer.json, or from a directory that has one or vocab.json and merges.txt; else LoaderError."""
        read = hub_tokenizer.read_tokenizer_json if source.is_file() else hub_tokenizer.read_directory
        return cls._checked(read(source))

    @classmethod
    def _checked(cls, files: hub_tokenizer.Files) -> "Vocabulary":
        found = cls(files.ids, files.merges, files.added, files.roles, files.chat_template)
        found.tokenizer()
        return found

    @classmethod
    def from_database(cls, database: Database, model: str) -> "Vocabulary | None":
        """The vocabulary stored for `model`, if there is one; an adapter uses that of its base."""
        model = database.base_of(model) or model
        rows = database.execute(
            f"SELECT token, token_id, roles, added, {', '.join(FLAGS)} FROM {{llm_bpe_vocab}} WHERE model = %s", model
        ).fetchall()
        merges = database.execute(
            'SELECT "left", "right" FROM {llm_bpe_merges} WHERE model = %s ORDER BY rank', model
        ).fetchall()
        ids = {token: token_id for token, token_id, *_ in rows}
        added = {token_id: AddedToken(token, *flags) for token, token_id, _, is_added, *flags in rows if is_added}
        roles = {role: token_id for _, token_id, roles, *_ in rows for role in roles}
        return cls(ids, merges, added, roles, chat_template_of(database, model)) if ids else None

    def encoder(self) -> bpe.Tokenizer:
        """What llm_encode encodes with. It refuses a text that the vocabulary lacks a token of."""
        with as_loader_error():
            tokens = {token_id: bpe.token_bytes(token) for token, token_id in self.ids.items()}
            return bpe.Tokenizer.of(tokens, self.merges, added=self.added)

    def tokenizer(self) -> Tokenizer:
        """The same for the library: special tokens are ordinary text, `<|endoftext|>` included. It drops what has no token."""
        try:
            tokenizer = Tokenizer(models.BPE(self.ids, self.merges))
        except Exception as error:  # the library raises nothing narrower
            raise LoaderError(f"the merges do not fit the vocabulary: {error}") from None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        for token in self.added.values():  # their ids are those in the vocabulary, where there are gaps, too
            add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            add([tokenizers.AddedToken(**token._asdict())])
        tokenizer.encode_special_tokens = True
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
            {"model": "text", "token_id": "int4", "token": "text", "bytes": "bytea", "roles": "text[]", "added": "bool"}
            | dict.fromkeys(FLAGS, "bool"),
            ((model, number, token, bpe.token_bytes(token), *self._said(number)) for token, number in self.ids.items()),
        )
        database.copy(
            "llm_bpe_merges",
            {"model": "text", "rank": "int4", "left": "text", "right": "text", "pair": "text"},
            ((model, rank, left, right, f"{left} {right}") for rank, (left, right) in enumerate(self.merges)),
        )
        if self.chat_template != chat_template_of(database, model) and not keep_chat_template(
            database, model, self.chat_template
        ):
            print(f'model "{model}" has no configuration yet, and so no place for its chat template', file=sys.stderr)

    def _said(self, token_id: int) -> tuple[Any, ...]:
        """Its roles, whether it is added, and its FLAGS."""
        roles = [role for role, known in self.roles.items() if known == token_id]
        return roles, token_id in self.added, *self.added.get(token_id, AddedToken(""))[1:]

    def save(self, directory: Path, n_positions: int, eos: int | None = None) -> None:
        """Write the files that GPT2Tokenizer of transformers reads, of whichever release; `eos` where the vocabulary names none.

        vocab.json has the added tokens, too, so that each keeps its id wherever it is.
        """
        tokenizer = self.tokenizer()
        tokenizer.model.save(str(directory))
        tokenizer.save(str(directory / "tokenizer.json"))
        token_of = {token_id: token for token, token_id in self.ids.items()}
        eos = self.roles.get("eos", self.eos if eos is None else eos)
        # GPT2Tokenizer's, where a file does not say; it would add one that is not there.
        first = self.ids.get(END_OF_TEXT, eos)
        roles = {"bos": first, "eos": eos, "unk": first} | self.roles
        special = {f"{role}_token": token_of.get(token_id) for role, token_id in roles.items()}  # type: ignore[arg-type]
        added = dict(sorted(self.added.items()))
        config: dict[str, Any] = {
            "added_tokens_decoder": {str(token_id): token._asdict() for token_id, token in added.items()},
            "add_prefix_space": False,
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": n_positions,
            "tokenizer_class": "GPT2Tokenizer",
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (directory / hub_tokenizer.TEMPLATE).unlink(missing_ok=True)  # one of before, which would be read in its place
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", {name: token for name, token in special.items() if token})
        write_json(directory / "added_tokens.json", {token.content: token_id for token_id, token in added.items()})


def chat_template_of(database: Database, model: str) -> str | None:
    """The one that is stored for `model`, if any."""
    row = database.execute("SELECT chat_template FROM {llm_model_config} WHERE model = %s", model).fetchone()
    return row[0] if row else None


def keep_chat_template(database: Database, model: str, template: str | None) -> bool:
    """Store the one of `model`; whether it has a configuration, which is the place."""
    done = database.execute("UPDATE {llm_model_config} SET chat_template = %s WHERE model = %s", template, model)
    return done.rowcount > 0


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
