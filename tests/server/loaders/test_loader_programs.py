"""The programs: from the shell, by path and as modules, and wherever the extension is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import safetensors.numpy

from loaders import save_adapter, save_model
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


@pytest.mark.parametrize("digits", [-15, 0])
def test_what_a_role_has_set_rounds_nothing_that_is_saved(dsn, conn, directory, tmp_path, digits):
    epsilon, alpha = 1.2345678912345678e-05, 3.5355339059327378
    load(conn, directory, "exact")
    conn.execute("UPDATE llm_model_config SET layer_norm_epsilon = %s WHERE model = 'exact'", [epsilon])
    conn.execute("SELECT llm_adapter_create('of exact', 'exact', r => 2, alpha => %s)", [alpha])
    with psycopg.connect(dsn, options=f"-c extra_float_digits={digits}") as rounding:
        save_model.save_model(Database(rounding), "exact", tmp_path / "model")
        save_adapter.save_adapter(Database(rounding), "of exact", tmp_path / "adapter")
    conn.execute("SELECT llm_drop_model('of exact'), llm_drop_model('exact')")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["layer_norm_epsilon"] == epsilon
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == alpha
