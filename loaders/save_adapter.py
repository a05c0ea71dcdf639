"""Write an adapter of the database as a directory that peft.PeftModel.from_pretrained opens.

adapter_config.json and adapter_model.safetensors, in float32, and chat_template.jinja where it has one of its own; not its base,
which save-model writes.
"""

import sys
from pathlib import Path

import numpy as np
import psycopg

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, connect, run
from loaders.hub_tokenizer import TEMPLATE
from loaders.peft_adapter import configuration, write_peft
from loaders.vocabulary import chat_template_of

HUB_NAMES = {"gpt2-small": "gpt2"}  # of the models that have another there


def save_adapter(database: Database, model: str, directory: Path, *, base: str | None = None) -> None:
    """Write the files of `directory`; in a REPEATABLE READ transaction, all from one snapshot. `base` is what they name it."""
    config = configuration(database, model)
    known_as = database.base_of(model)
    if config.adapter is None or known_as is None:
        raise LoaderError(f'model "{model}" is no adapter; save-model writes it')
    tensors = read_tensors(database, model, config.adapter_shapes())
    write_peft(directory, config.adapter, base or HUB_NAMES.get(known_as, known_as), tensors)
    if (template := chat_template_of(database, model)) is None:
        (directory / TEMPLATE).unlink(missing_ok=True)  # one of before
    else:
        (directory / TEMPLATE).write_text(template, encoding="utf-8")


def read_tensors(database: Database, model: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a model that `shapes` names, put together from their blocks; LoaderError when one lacks rows."""
    rows = database.execute(
        "SELECT name, shape, data FROM {llm_param_resolved} WHERE model = %s AND name = ANY (%s) ORDER BY name, token_id",
        *(model, list(shapes)),
    )
    blocks: dict[str, list[np.ndarray]] = {}
    for name, shape, data in rows:
        blocks.setdefault(name, []).append(np.frombuffer(data, "<f4").reshape(shape))
    for name, (wanted, *_) in shapes.items():
        found = sum(len(block) for block in blocks.get(name, []))
        if found != wanted:
            raise LoaderError(f'tensor {name} of model "{model}" has {found} of {wanted} rows')
    return {name: np.concatenate(blocks[name]) for name in shapes}


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
