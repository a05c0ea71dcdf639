"""The programs: from the shell, by path and as modules, and wherever the extension is."""

import io
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psycopg
import pytest
import safetensors.numpy

from loaders import convert_gpt2_checkpoint, save_adapter, save_model
from loaders.common import Database, LoaderError, complete, output
from loaders.vocabulary import Vocabulary
from tests.server.loaders.hub import assert_same, hub_names, load, run, weights

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


PROGRAM = [sys.executable, "-m", "loaders"]


def shell(*command, **options):
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, check=False, **options)


def test_a_pipe_is_written_to_and_stays(directory, tmp_path, monkeypatch):
    """As a device is; an .npz, too, whose writer would rather seek."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    for write in (
        lambda: run(convert_gpt2_checkpoint, monkeypatch, "--source", directory, "--output", pipe),
        lambda: write_to(pipe, b"a report"),
    ):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
        reader.start()
        write()
        reader.join(10)
    assert pipe.is_fifo()
    assert read[1] == b"a report"
    with np.load(io.BytesIO(read[0]), allow_pickle=False) as found:
        assert_same(dict(found), weights())
    with pytest.raises(LoaderError, match="is no file"), complete(pipe):
        pass


def write_to(path, data):
    with output(path) as file:
        file.write_bytes(data)


def test_what_is_written_is_there_as_a_whole_at_the_target_of_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "report.html")
    for data in (b"first", b"second"):
        write_to(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "report.html").read_bytes() == data
    with pytest.raises(OSError, match="No such file"), output(tmp_path / "link") as file:
        file.write_bytes((tmp_path / "nowhere").read_bytes())
    assert (tmp_path / "link").read_bytes() == b"second"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "real", "report.html"]


@pytest.mark.parametrize("name", ["", "."])
def test_an_output_without_a_name_is_refused(directory, name):
    options = ("--source", directory, "--output", name)
    done = shell(*PROGRAM, "convert-gpt2-checkpoint", *options)
    assert (done.returncode, done.stderr) == (1, b"error: . is a directory; name a file\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_cannot_be_printed_is_an_error_without_a_traceback(tmp_path, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    closed = shell(*PROGRAM, "--help", stdout=write)
    os.close(write)
    assert (closed.returncode, closed.stderr) == (1, b"")
    with open(tmp_path / "full", "wb") as file:
        full = shell(
            *PROGRAM, "--help", stdout=file, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))
        )
    assert full.returncode == 1
    assert full.stderr.startswith(b"error: [Errno ")
    assert full.stderr.count(b"\n") == 1


@pytest.mark.parametrize("module", ["psycopg", "safetensors"])
def test_an_interrupt_while_modules_are_imported_is_told_as_one(module):
    program = f"""
import builtins, sys

def interrupted(name, *args):
    if name == {module!r}:
        raise KeyboardInterrupt
    return imported(name, *args)

imported, builtins.__import__ = builtins.__import__, interrupted
sys.argv = ["pg-gpt2", "load-model", "x"]
from loaders.__main__ import main
main()
"""
    done = shell(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (1, b"interrupted\n")


@pytest.mark.parametrize(
    "command",
    [
        ("load-model", "postgresql-docs", "--model", b"m\xff"),
        ("prepare-dataset", "--tokenizer", "loaders/shipped/postgresql-docs", "--query", b"m\xff"),
        ("save-model", b"m\xff", "."),
        ("report", "--dsn", b"m\xff"),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_bytes_that_are_no_text_are_told(dsn, command):
    done = shell(*PROGRAM, *command, *([] if "--dsn" in command else ["--dsn", dsn]))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == rb"error: 'm\udcff' is not UTF-8"
    assert b"Traceback" not in done.stderr


def test_a_path_that_is_no_text_can_be_printed(dsn, directory, tmp_path):
    path = os.fsencode(tmp_path) + b"/m\xff"
    os.rename(directory, path)
    done = shell(*PROGRAM, "load-model", path, "--model", "odd path", "--dsn", dsn, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(rb"m\udcff" + b"\n")


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_is_none_is_told(port):
    done = shell(*PROGRAM, "serve", "--port", str(port))
    assert (done.returncode, done.stderr) == (1, f"error: --port must be from 0 to 65535, not {port}\n".encode())
