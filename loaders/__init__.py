"""Client-side programs that load models, vocabularies and texts into pg_gpt2, and save models from it.

Run them as `pg-gpt2 load-model --help` after `pip install .` in a virtual environment; without, as `python -m loaders
load-model`, or by path. Each works over one connection and in one transaction, so that an interrupted run leaves nothing behind.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if missing := [name for name in ("numpy", "psycopg", "tqdm") if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"this Python has no {', '.join(missing)}; `pip install .` in a virtual environment, in the checkout, brings what the"
        " loaders need, and after `make demo` .venv/test/bin/python has it"
    )

if find_spec("pg_gpt2") is None:  # in a checkout that was not installed
    sys.path.append(str(Path(__file__).resolve().parent.parent / "plpython"))
