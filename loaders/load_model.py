"""Load a GPT-2 into the database: a directory that save_pretrained wrote, the model that ships, or one of the hub.

    pg-gpt2 load-model postgresql-docs      ships with pg_gpt2, in loaders/shipped/
    pg-gpt2 load-model gpt2                 and gpt2-medium, gpt2-large, gpt2-xl: OpenAI's, from the hub

Weights may be one file or shards, in float32, float16 or bfloat16. A vocabulary in the directory is loaded as well. A download
that was interrupted is resumed where it stopped, and every file is checked against the hub's hash.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, bar, connect, run
from loaders.hub_model import HubModel
from loaders.vocabulary import Vocabulary

SHIPPED = Path(__file__).resolve().parent / "shipped"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")


def locate(source: str, revision: str | None = None, *, adapter: bool = False) -> Path:
    """The directory (or safetensors file) that `source` names: a path, a shipped model or adapter, or one of the hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if (SHIPPED / source / ("adapter_config.json" if adapter else "config.json")).exists():
        return SHIPPED / source
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise LoaderError(f"{source} does not exist")
    from loaders import hub

    return hub.Repository(source, revision, hub.ADAPTER if adapter else hub.MODEL).fetch()


def default_name(source: str) -> str:
    """The directory's name, or the last part of a hub id; the hub's gpt2 is the extension's gpt2-small."""
    path = Path(source).expanduser()
    if not path.exists() and path.name == "gpt2":
        return "gpt2-small"
    path = path.resolve()
    return path.parent.name if path.is_file() else path.name


def load_model(database: Database, source: Path, model: str, *, replace: bool = False) -> None:
    """Register the configuration, insert the weights and, where there is one, the vocabulary. The caller commits."""
    hub = HubModel(source)
    if (base := database.base_of(model)) is not None:
        raise LoaderError(f'model "{model}" is an adapter of "{base}", which a model does not replace; drop it first')
    if replace:
        database.execute("DELETE FROM {llm_param} WHERE model = %s", model)
    elif database.execute("SELECT 1 FROM {llm_param} WHERE model = %s LIMIT 1", model).fetchone():
        raise LoaderError(f'model "{model}" has weights already; --replace replaces them')
    columns = {"model": model, **asdict(hub.config)}
    database.execute(
        "INSERT INTO {llm_model_config} (model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (model) DO UPDATE SET"
        " (n_layer, n_head, d_model, n_positions, vocab, eos_token_id)"
        " = (excluded.n_layer, excluded.n_head, excluded.d_model, excluded.n_positions, excluded.vocab,"
        " excluded.eos_token_id)",
        *columns.values(),
    )
    database.copy(
        "llm_param",
        {"model": "text", "name": "text", "token_id": "int4", "shape": "int4[]", "data": "bytea"},
        weight_rows(hub, model),
    )
    if any((hub.directory / name).exists() for name in TOKENIZER_FILES):
        load_vocabulary(database, hub.directory, model, replace=replace)


def weight_rows(hub: HubModel, model: str) -> Iterator[tuple[Any, ...]]:
    """The rows of llm_param that hold the model, with a progress bar."""
    with bar(hub.config.n_bytes(), f"weights of {model}") as progress:
        for name in hub.tensors:
            for start, values in hub.blocks(name):
                yield model, name, start, list(values.shape), values.data.cast("B")
                progress.update(values.nbytes)


def load_vocabulary(database: Database, directory: Path, model: str, *, replace: bool) -> None:
    """Load the vocabulary of a model directory, unless the model has one already and `replace` is false."""
    if not replace and database.execute("SELECT 1 FROM {llm_bpe_vocab} WHERE model = %s LIMIT 1", model).fetchone():
        print(f'model "{model}" has a vocabulary already, which is kept; --replace replaces it', file=sys.stderr)
        return
    Vocabulary.find(directory).store(database, model, replace=replace)


def main() -> None:
    """Parse the command line and load."""
    parser = arguments(__doc__)
    parser.add_argument(
        "source", help="directory, safetensors file with config.json beside it, shipped model, or hub id"
    )
    parser.add_argument("--model", help="name in the database; default: the last part of the source")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--replace", action="store_true", help="replace weights, optimizer state and vocabulary")
    args = parser.parse_args()
    source = locate(args.source, args.revision)
    model = args.model or default_name(args.source)
    with connect(args.dsn) as conn:
        load_model(Database(conn), source, model, replace=args.replace)
    print(f'loaded model "{model}" from {args.source}')


if __name__ == "__main__":
    run(main)
