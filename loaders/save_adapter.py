"""Write an adapter of the database as a directory that peft.PeftModel.from_pretrained opens.

adapter_config.json and adapter_model.safetensors, in float32; not its base, which save-model writes.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pg_gpt2.core.config import Adapter, GPT2Config

from loaders.common import Database, LoaderError, arguments, connect, run
from loaders.load_adapter import configuration
from loaders.peft_adapter import write_peft

HUB_NAMES = {"gpt2-small": "gpt2"}  # of the models that have another there


def save_adapter(database: Database, model: str, directory: Path, *, base: str | None = None) -> None:
    """Write the files of `directory`; in a REPEATABLE READ transaction, all from one snapshot. `base` is what they name it."""
    config = configuration(database, model)
    row = database.execute("SELECT r, alpha, targets, dropout_p FROM {llm_adapter} WHERE model = %s", model).fetchone()
    known_as = database.base_of(model)
    if row is None or known_as is None:
        raise LoaderError(f'model "{model}" is no adapter; save-model writes it')
    r, alpha, targets, dropout_p = row
    adapter = Adapter(r, alpha, tuple(targets), dropout_p)
    tensors = read_tensors(database, model, replace(config, adapter=adapter))
    write_peft(directory, adapter, base or HUB_NAMES.get(known_as, known_as), tensors)


def read_tensors(database: Database, model: str, config: GPT2Config) -> dict[str, np.ndarray]:
    """The adapter's own tensors, put together from their blocks; LoaderError when one is not what the configuration says."""
    rows = database.execute(
        "SELECT name, shape, data FROM {llm_param_resolved} WHERE model = %s AND name = ANY (%s) ORDER BY name, token_id",
        *(model, list(config.adapter_shapes())),
    )
    blocks: dict[str, list[np.ndarray]] = {}
    for name, shape, data in rows:
        blocks.setdefault(name, []).append(np.frombuffer(data, "<f4").reshape(shape))
    for name, shape in config.adapter_shapes().items():
        found = sum(len(block) for block in blocks.get(name, []))
        if found != shape[0]:
            raise LoaderError(f'tensor {name} of model "{model}" has {found} of {shape[0]} rows')
    return {name: np.concatenate(blocks[name]) for name in config.adapter_shapes()}


def main() -> None:
    """Parse the command line and save."""
    parser = arguments(__doc__)
    parser.add_argument("model", help="name in the database")
    parser.add_argument("directory", type=Path, help="where to write; made when missing")
    parser.add_argument(
        "--base",
        help="directory or hub id of the base, for programs that look for it (base_model_name_or_path); default: its name in"
        " the database",
    )
    args = parser.parse_args()
    with connect(args.dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        save_adapter(Database(conn), args.model, args.directory, base=args.base)
    print(f'saved adapter "{args.model}" in {args.directory}')


if __name__ == "__main__":
    run(main)
