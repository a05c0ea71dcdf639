"""The programs: from the shell, by path and as modules, and wherever the extension is."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import safetensors.numpy

from loaders import save_model
from loaders.common import Database, LoaderError
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import assert_same, hub_names, load, weights

ROOT = Path(__file__).resolve().parents[3]


def test_extension_in_another_schema(new_database, directory, vocabulary, tmp_path):
    with psycopg.connect(new_database("template0"), autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "LLM %"')
        with pytest.raises(LoaderError, match="does not have pg_gpt2"):
            Database(conn)
        conn.execute('CREATE EXTENSION pg_gpt2 SCHEMA "LLM %" CASCADE')
        load(conn, directory, "elsewhere")
        with conn.transaction():
            Vocabulary.find(vocabulary).store(Database(conn), "elsewhere", replace=False)
            save_model.save_model(Database(conn), "elsewhere", tmp_path / "saved")
    assert_same(safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors"), hub_names(weights()))


@pytest.mark.parametrize("way", ["module", "path"])
def test_programs_run_from_the_shell(dsn, directory, tmp_path, way):
    def shell(name, *args, **options):
        program = ["-m", f"loaders.{name}"] if way == "module" else [ROOT / "loaders" / f"{name}.py"]
        directory = ROOT if way == "module" else tmp_path
        command = [sys.executable, *program, *args]
        return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=os.environ | options)

    done = shell("load_model", directory, "--dsn", dsn, "--model", f"by {way}")
    assert (done.returncode, done.stdout) == (0, f'loaded model "by {way}" from {directory}\n'), done.stderr
    again = shell("load_model", directory, "--dsn", dsn, "--model", f"by {way}")
    assert again.returncode == 1
    assert again.stderr == f'error: model "by {way}" has weights already; --replace replaces them\n'
    unreachable = shell("save_model", "any", tmp_path / "out", "--dsn", "host=/nowhere")
    assert unreachable.returncode == 1
    assert unreachable.stderr.startswith("error: ")
    assert "Traceback" not in unreachable.stderr
    unknown = shell("save_model", "unknown", tmp_path / "out", "--dsn", dsn)
    assert unknown.stderr == 'error: model "unknown" does not exist\n'
    for name in ("convert_gpt2_checkpoint", "ingest_tokenizer", "prepare_dataset", "load_adapter", "save_adapter"):
        assert shell(name, "--help").returncode == 0
