"""Write a model of the database as a directory that transformers.GPT2LMHeadModel.from_pretrained opens.

config.json, model.safetensors in float32 (--half: float16), and the vocabulary when the model has one.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import psycopg
import safetensors.numpy
from psycopg.rows import tuple_row

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, bar, complete, connect, fetched, run
from loaders.hub_model import Config
from loaders.vocabulary import Vocabulary, write_json


def save_model(database: Database, model: str, directory: Path, *, half: bool = False) -> None:
    """Write the files of `directory`; in a REPEATABLE READ transaction, all from one snapshot."""
    found = database.execute(
        f"SELECT {', '.join(field.name for field in fields(Config))} FROM {{llm_model_config}} WHERE model = %s",
        model,
    ).fetchone()
    if found is None:
        raise LoaderError(f'model "{model}" does not exist')
    if (base := database.base_of(model)) is not None:
        raise LoaderError(
            f'model "{model}" is an adapter of "{base}": save-adapter writes it, and llm_adapter_merge makes a model of the two'
        )
    config = Config(*found)
    vocabulary = Vocabulary.from_database(database, model)
    if vocabulary is not None and config.eos_token_id is None:
        config = replace(config, eos_token_id=vocabulary.eos)
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(database, model, config, directory / "model.safetensors", half=half)
    # Else transformers would compute in what the weights are stored in.
    write_json(directory / "config.json", config.to_hub() | ({"dtype": "float32"} if half else {}))
    stops = config.eos_token_id if config.stop_token_ids is None else list(config.stop_token_ids) or None
    tokens = {"bos_token_id": config.eos_token_id, "eos_token_id": stops}
    write_json(directory / "generation_config.json", {"_from_model_config": True, **tokens})
    if vocabulary is not None:
        vocabulary.save(directory, config.n_positions, config.eos_token_id)


def write_weights(database: Database, model: str, config: Config, path: Path, *, half: bool) -> None:
    """Write what the server exports to `path`, as safetensors."""
    with complete(path) as partial:
        with open(partial, "wb") as file, bar(config.n_bytes(), f"weights of {model}") as progress:
            for chunk in exported(database, model):
                file.write(chunk)
                progress.update(len(chunk))
        refuse_truncated(partial)
        if half:
            halve(partial)


def refuse_truncated(path: Path) -> None:
    """LoaderError unless a safetensors file ends where its header says: what a driver or a network loses need not be an error."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    expected, size = 8 + length + max(entry["data_offsets"][1] for entry in header.values()), path.stat().st_size
    if size != expected:
        raise LoaderError(f"{size} of {expected} bytes of the weights came from the server")


def halve(path: Path) -> None:
    """Rewrite a safetensors file in float16; LoaderError when a value is too large for that."""
    found = {}
    for name, values in safetensors.numpy.load_file(path).items():
        with np.errstate(over="ignore"):
            found[name] = values.astype(np.float16)
        if not np.isfinite(found[name]).all():
            raise LoaderError(f"tensor {name} has a value beyond float16's 65504; leave out --half")
    path.write_bytes(safetensors.numpy.save(found, {"format": "pt"}))


def exported(database: Database, model: str) -> Iterator[bytes]:
    """The chunks of the safetensors file. With the function in the target list, each is made when it is fetched."""
    with psycopg.ServerCursor(database.conn, "pg_gpt2_export", row_factory=tuple_row) as cursor:
        cursor.execute(database.query("SELECT {llm_export_safetensors}(%s::text)"), [model], binary=True)
        for (chunk,) in fetched(cursor, 1):
            yield chunk


def main() -> None:
    """Parse the command line and save."""
    parser = arguments(__doc__)
    parser.add_argument("model", help="name in the database")
    parser.add_argument("directory", type=Path, help="where to write; made when missing")
    parser.add_argument("--half", action="store_true", help="weights in float16: half the size, three digits")
    args = parser.parse_args()
    with connect(args.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        save_model(Database(conn), args.model, args.directory, half=args.half)
    print(f'saved model "{args.model}" in {args.directory}')


if __name__ == "__main__":
    run(main)
