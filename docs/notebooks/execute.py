"""Run the notebooks of this directory, each in a database of its own, and compare with the outputs that they hold.

docker/cluster.sh run .venv/notebooks/bin/python docs/notebooks/execute.py [--store] [NAME...]     (make notebooks)

Without --store, a notebook must run without an error, give as many outputs of the same kinds as are stored in it, and not
have been edited since they were stored. Numbers, texts and pictures are not compared: they vary between processors. With
--store, the outputs become those of this run. Outputs that name a place on this machine are an error in any case.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psycopg
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from psycopg import conninfo, sql

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT = 300  # seconds a cell, on a machine that is busy with other things
VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def digest(notebook: NotebookNode) -> str:
    """Of the sources of all cells."""
    return hashlib.sha256(repr([(cell.cell_type, cell.source) for cell in notebook.cells]).encode()).hexdigest()[:16]


def new_database(dsn: str, name: str) -> str:
    """A copy of the template that has the extension; its DSN."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template_pg_gpt2").format(sql.Identifier(name)))
    return conninfo.make_conninfo(dsn, dbname=name)


def execute(notebook: NotebookNode, dsn: str, scratch: str) -> None:
    """Run all cells in a new kernel, whose libpq variables name the database."""
    parts = conninfo.conninfo_to_dict(dsn)
    paths = [str(ROOT / part) for part in (".", "loaders", "plpython")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment |= {variable: str(parts[part]) for part, variable in VARIABLES.items() if part in parts}
    environment |= {"IPYTHONDIR": scratch, "MPLCONFIGDIR": scratch, "PYTHONPATH": os.pathsep.join(paths)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What each code cell gave: streams, and media types of what it displayed."""
    return [
        [output.get("name") or " ".join(sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def places(notebook: NotebookNode, dsn: str) -> set[str]:
    """Names of this machine that occur in the text of outputs."""
    texts = [
        str(text)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind, text in {**output.get("data", {}), "text": output.get("text", "")}.items()
        if kind != "image/png"
    ]
    names = {
        str(ROOT),
        sys.prefix,
        str(Path.home()),
        str(conninfo.conninfo_to_dict(dsn).get("host")),
        tempfile.gettempdir(),
    }
    return {name for name in names if re.search(rf"{re.escape(name)}\b", "\n".join(texts))}


def tidy(notebook: NotebookNode) -> None:
    """Leave out what differs from run to run without need."""
    notebook.metadata.clear()
    notebook.metadata.update(METADATA, pg_gpt2={"sources": digest(notebook)})
    for number, cell in enumerate(notebook.cells, 1):
        cell.metadata.clear()
        cell.id = f"cell-{number}"


def run(path: Path, dsn: str, scratch: str, *, store: bool) -> list[str]:
    """Execute one notebook; what is wrong with it."""
    notebook = nbformat.read(path, as_version=4)
    stored, edited = kinds(notebook), notebook.metadata.get("pg_gpt2", {}).get("sources") != digest(notebook)
    database = new_database(dsn, f"notebook_{path.stem}")
    try:
        execute(notebook, database, scratch)
    except CellExecutionError as error:
        return [str(error)]
    wrong = [f"an output names {place}" for place in sorted(places(notebook, dsn))]
    if store and not wrong:
        tidy(notebook)
        nbformat.write(notebook, path)
    elif edited:
        wrong.append("edited since its outputs were stored")
    elif stored != kinds(notebook):
        wrong.append(f"gives other outputs than are stored:\n  {kinds(notebook)}\n  {stored}")
    return wrong


def main() -> None:
    """Parse the command line, run, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the outputs of this run")
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb; default: all")
    args = parser.parse_args()
    paths = [HERE / f"{name}.ipynb" for name in args.names] or sorted(HERE.glob("*.ipynb"))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            began = time.perf_counter()
            wrong = run(path, os.environ["PG_GPT2_TEST_DSN"], scratch, store=args.store)
            print(f"{path.name}: {'; '.join(wrong) or 'ok'} ({time.perf_counter() - began:.0f} s)")
            failed |= bool(wrong)
    if failed:
        sys.exit(
            "A notebook failed. If the change is meant: make notebooks NOTEBOOK_ARGS=--store, and look at the pictures."
        )


if __name__ == "__main__":
    main()
