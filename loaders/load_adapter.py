"""Load a LoRA adapter that PEFT wrote, as a model of its own beside its base: a directory, or a repository of the hub.

    pg-gpt2 load-adapter ./support --base gpt2-small --model support

The base is a model of the database with the weights that the adapter was trained on; the files do not say which those were.
Of a tokenizer beside them its chat template is taken, where the base has another: ids are the base's.
"""

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run by path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loaders.common import Database, LoaderError, arguments, connect, run
from loaders.hub_tokenizer import chat_template
from loaders.load_model import default_name, insert_weights, locate
from loaders.peft_adapter import PeftAdapter, configuration
from loaders.vocabulary import chat_template_of, keep_chat_template


def load_adapter(database: Database, directory: Path, base: str, model: str, *, replace: bool = False) -> None:
    """Make an adapter of `base` with the weights in `directory`; with `replace`, of one that is there. The caller commits."""
    found = PeftAdapter(directory, configuration(database, base))
    there = database.execute("SELECT 1 FROM {llm_model_config} WHERE model = %s", model).fetchone()
    if there and not replace:
        raise LoaderError(f'model "{model}" is there already; --replace replaces an adapter')
    if there and (other := database.base_of(model)) != base:
        what = "no adapter" if other is None else f'an adapter of "{other}"'
        raise LoaderError(f'model "{model}" is {what}, which an adapter of "{base}" does not replace; drop it first')
    if not there:
        # Of some rank, which then becomes that of the file.
        database.execute("SELECT {llm_adapter_create}(%s, %s)", model, base)
    insert_weights(database, model, {"base": base, **asdict(found.adapter)}, found, replace=True)
    if (template := chat_template(directory)) is not None:  # else the one that it has stays
        keep_chat_template(database, model, None if template == chat_template_of(database, base) else template)


def main() -> None:
    """Parse the command line and load."""
    parser = arguments(__doc__)
    parser.add_argument("source", help="directory with adapter_config.json and adapter_model.safetensors, or hub id")
    parser.add_argument("--base", required=True, help="name in the database of the model that it adapts")
    parser.add_argument("--model", help="name in the database; default: the last part of the source")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--replace", action="store_true", help="replace the weights of an adapter of the same base")
    args = parser.parse_args()
    source = locate(args.source, args.revision, adapter=True)
    model = args.model or default_name(args.source)
    with connect(args.dsn) as conn:
        load_adapter(Database(conn), source, args.base, model, replace=args.replace)
    print(f'loaded adapter "{model}" of "{args.base}" from {args.source}')


if __name__ == "__main__":
    run(main)
