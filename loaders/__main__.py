"""The programs of loaders/ as one command: `pg-gpt2 load-model ...` after `pip install .`, `python -m loaders ...` without."""

import sys
from importlib import import_module

COMMANDS = {
    "load-model": "loaders.load_model",
    "save-model": "loaders.save_model",
    "load-adapter": "loaders.load_adapter",
    "save-adapter": "loaders.save_adapter",
    "ingest-tokenizer": "loaders.ingest_tokenizer",
    "prepare-dataset": "loaders.prepare_dataset",
    "convert-gpt2-checkpoint": "loaders.convert_gpt2_checkpoint",
    "report": "loaders.report.__main__",
    "demo": "loaders.demo.__main__",
    "serve": "loaders.serve.__main__",
}


def overview() -> str:
    """What `pg-gpt2 --help` prints: each command with the first line of its module's docstring."""
    lines = [f"  {name:<25}{_summary(module)}" for name, module in COMMANDS.items()]
    return "usage: pg-gpt2 COMMAND [ARGUMENT...]\n\n" + "\n".join(lines) + "\n\npg-gpt2 COMMAND --help tells more."


def _summary(module: str) -> str:
    return (import_module(module).__doc__ or "").strip().split("\n")[0]


def main() -> None:
    """Run the command that the first argument names."""
    try:
        from .common import run  # what it imports takes long enough to be interrupted
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
    run(command)


def command() -> None:
    """The command itself; its module may import much, too."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("", "-h", "--help"):
        print(overview())
        raise SystemExit(0 if name else 2)
    if name == "--version":
        from pg_gpt2 import __version__

        print(f"pg-gpt2 {__version__}")
        return
    if name not in COMMANDS:
        raise SystemExit(f"error: there is no command {name}; pg-gpt2 --help lists the commands")
    sys.argv = [f"pg-gpt2 {name}", *sys.argv[2:]]
    import_module(COMMANDS[name]).main()


if __name__ == "__main__":
    main()
