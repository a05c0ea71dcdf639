"""Load a GPT-2 into the database: a directory or file, the model that ships, or one of the hub.

    pg-gpt2 load-model postgresql-docs      ships with pg_gpt2, in loaders/shipped/
    pg-gpt2 load-model gpt2                 and gpt2-medium, gpt2-large, gpt2-xl: OpenAI's, from the hub

A directory is one of save_pretrained: one file or shards, in float32, float16 or bfloat16. Files are also those of GGUF (with
the package gguf), pytorch_model.bin and nanoGPT's ckpt.pt (with torch), and llm.c's .bin. A vocabulary that comes with the
weights is loaded as well. A download that was interrupted is resumed where it stopped, and every file is checked against the
hub's hash.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, bar, connect, run
from loaders.hub_model import ADAPTER_CONFIG, HubModel
from loaders.vocabulary import Vocabulary

SHIPPED = Path(__file__).resolve().parent / "shipped"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "encoder.json", "vocab.bpe")


def locate(source: str, revision: str | None = None, file: str | None = None, *, adapter: bool = False) -> Path:
    """The directory or file that `source` names: a path, a shipped model or adapter, or one of the hub; with `file` that one in
    it."""
    path = Path(os.path.expanduser(source))
    if path.exists():
        found = path
    elif (SHIPPED / source / (ADAPTER_CONFIG if adapter else "config.json")).exists():
        found = SHIPPED / source
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise LoaderError(f"{source} does not exist")
    else:
        from loaders import hub

        return hub.Repository(source, revision, file, adapter=adapter).fetch() / (file or "")
    if revision is not None:
        raise LoaderError(f"{source} is {found}, and no model of the hub: it has no revision {revision}")
    return found / (file or "")


def default_name(source: str) -> str:
    """The directory's name, that of a GGUF file, or the last part of a hub id; the hub's gpt2 is the extension's gpt2-small."""
    path = Path(os.path.expanduser(source))
    if not path.exists() and path.name == "gpt2":
        return "gpt2-small"
    path = path.resolve()
    if path.suffix == ".gguf":
        return path.stem
    return path.parent.name if path.is_file() else path.name


def load_model(
    database: Database,
    source: Path,
    model: str,
    *,
    replace: bool = False,
    activation: str | None = None,
    tokenizer: bool = True,
) -> None:
    """Register the configuration, insert the weights and, where there is one and `tokenizer` is true, the vocabulary. The caller
    commits. What an import of the server refuses is refused, as the configuration of another shape."""
    hub = HubModel(source, activation)
    if (base := database.base_of(model)) is not None:
        raise LoaderError(f'model "{model}" is an adapter of "{base}", which a model does not replace; drop it first')
    for note in hub.notes:
        print(f"{source}: {note}", file=sys.stderr)
    insert_weights(database, model, hub.config.engine().to_json(), hub, replace=replace)
    if tokenizer and (hub.vocabulary is not None or any((hub.directory / name).exists() for name in TOKENIZER_FILES)):
        load_vocabulary(database, hub, model, replace=replace)


class HasWeights(LoaderError):
    """The model has weights, which are not to be replaced."""


class Tensors(Protocol):
    """Where weights come from."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a tensor, by our name and in our orientation."""


def insert_weights(database: Database, model: str, config: dict[str, Any], tensors: Tensors, *, replace: bool) -> None:
    """Insert the rows that the server asks for, with a progress bar. While another session trains the model, it waits."""
    begin = "SELECT name, token_id, shape FROM {llm_import_begin}(%s, %s, %s)"
    try:
        blocks = database.execute(begin, model, json.dumps(config), replace).fetchall()
    except psycopg.errors.DuplicateObject:
        raise HasWeights(f'model "{model}" has weights already; --replace replaces them') from None
    with bar(sum(4 * prod(shape) for *_, shape in blocks), f"weights of {model}") as progress:

        def rows() -> Iterator[tuple[Any, ...]]:
            for name, first, shape in blocks:
                values = tensors.rows(name, first, first + shape[0])
                yield model, name, first, shape, values.data.cast("B")
                progress.update(values.nbytes)

        types = {"model": "text", "name": "text", "token_id": "int4", "shape": "int4[]", "data": "bytea"}
        database.copy("llm_param", types, rows())


def load_vocabulary(database: Database, hub: HubModel, model: str, *, replace: bool) -> None:
    """Load the vocabulary that came with the weights, unless the model has one already and `replace` is false."""
    if not replace and database.execute("SELECT 1 FROM {llm_bpe_vocab} WHERE model = %s LIMIT 1", model).fetchone():
        print(f'model "{model}" has a vocabulary already, which is kept; --replace replaces it', file=sys.stderr)
        return
    try:
        vocabulary = Vocabulary.find(hub.directory) if hub.vocabulary is None else hub.vocabulary()
    except LoaderError as error:
        raise LoaderError(f"{error}; --no-tokenizer loads the weights alone") from None
    vocabulary.store(database, model, replace=replace)


def about_weights(parser: argparse.ArgumentParser) -> None:
    """The options that say which file is meant, and what it does not say."""
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--file", help="of a hub model or a directory: the weights, where it has several, as GGUF")
    parser.add_argument(
        "--activation-function", help="by the name in config.json, for a file that does not say it: of nanoGPT, or GGUF"
    )


def main() -> None:
    """Parse the command line and load."""
    parser = arguments(__doc__)
    parser.add_argument("source", help="directory, file of weights, shipped model, or hub id")
    parser.add_argument("--model", help="name in the database; default: the last part of the source")
    about_weights(parser)
    parser.add_argument("--replace", action="store_true", help="replace weights, optimizer state and vocabulary")
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="weights alone, such as of a foreign tokenizer's model"
    )
    args = parser.parse_args()
    source = locate(args.source, args.revision, args.file)
    model = args.model or default_name(args.source)
    with connect(args.dsn) as conn:
        load_model(
            Database(conn),
            source,
            model,
            replace=args.replace,
            activation=args.activation_function,
            tokenizer=not args.no_tokenizer,
        )
    print(f'loaded model "{model}" from {args.source}')


if __name__ == "__main__":
    run(main)
