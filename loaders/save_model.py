"""Write a model of the database as a directory that transformers.GPT2LMHeadModel.from_pretrained opens.

config.json, model.safetensors in float32, and the vocabulary when the model has one.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, bar, connect, run
from loaders.hub_model import Config, hub_name
from loaders.vocabulary import Vocabulary


def save_model(database: Database, model: str, directory: Path) -> None:
    """Write `directory`. Weights and configuration are of one snapshot when the transaction is REPEATABLE READ."""
    found = database.execute(
        "SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM {llm_model_config} WHERE model = %s", model
    ).fetchone()
    if found is None:
        raise LoaderError(f'model "{model}" does not exist')
    config = Config(*found)
    vocabulary = Vocabulary.from_database(database, model)
    directory.mkdir(parents=True, exist_ok=True)
    if config.eos_token_id is None and vocabulary is not None:
        config = Config(*found[:-1], vocabulary.end_of_text())
    write_json(directory / "config.json", config.to_hub())
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": config.eos_token_id, "eos_token_id": config.eos_token_id, "_from_model_config": True},
    )
    write_weights(database, model, config, directory / "model.safetensors")
    if vocabulary is not None:
        vocabulary.save(directory, config.n_positions)


def write_weights(database: Database, model: str, config: Config, path: Path) -> None:
    """Stream the blocks into a safetensors file, which gets its name when it is complete."""
    shapes = config.shapes()
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(_product(shape))
        header[hub_name(name)] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file, bar(end, f"weights of {model}") as progress:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                rows = 0
                for data in stored_blocks(database, model, name):
                    rows += len(data)
                    file.write(data)
                    progress.update(len(data))
                if rows != 4 * _product(shape):
                    raise LoaderError(
                        f'model "{model}" has no weights' if not rows and name == "wte"
                        else f'the stored blocks of tensor {name} of model "{model}" do not add up to shape {list(shape)}'
                    )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for dim in shape:
        result *= dim
    return result


def stored_blocks(database: Database, model: str, name: str) -> Iterator[bytes]:
    """Data of a tensor's blocks in order, a few at a time."""
    with database.conn.cursor(name="pg_gpt2_blocks") as cursor:
        cursor.itersize = 4
        statement = "SELECT data FROM {llm_param} WHERE model = %s AND name = %s ORDER BY token_id"
        for (data,) in cursor.execute(database.query(statement), (model, name), binary=True):
            yield data


def write_json(path: Path, value: object) -> None:
    """One JSON file, indented."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
