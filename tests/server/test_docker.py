"""The image, as far as every run of the tests can see it: what it is built from, and what its first start does.

`make test-image` builds and starts it (tests/image).
"""

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg import conninfo

from loaders import save_model
from loaders.common import Database

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def sources() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    return [name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_is_there_and_sent_to_the_builder(source):
    assert list(ROOT.glob(source.rstrip("/")))
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert f"!{source.rstrip('/')}" in sent


def test_scripts_are_executable():
    for script in ("docker/initdb.sh", "docker/provision.sh"):
        assert os.access(ROOT / script, os.X_OK)


def test_compose_builds_this_and_keeps_the_data_directory():
    (service,) = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"].values()
    context = ROOT / "docker" / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).samefile(ROOT / "docker/Dockerfile")
    (data,) = re.findall(r"^ENV PGDATA=(.*)$", DOCKERFILE, re.MULTILINE)
    assert [volume.partition(":")[2] for volume in service["volumes"]] == [data]


def first_start(database: str, models: Path) -> subprocess.CompletedProcess[str]:
    """docker/initdb.sh with what the entrypoint of the official image gives it."""
    parts = conninfo.conninfo_to_dict(database)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
        "PATH": os.pathsep.join([os.environ.get("PG_GPT2_TEST_BINDIR", ""), os.environ["PATH"]]),
        "PGHOST": str(parts["host"]),
        "PGPORT": str(parts["port"]),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_DB": str(parts["dbname"]),
        "PG_GPT2_MODELS": str(models),
    }
    return subprocess.run([ROOT / "docker/initdb.sh"], env=environment, capture_output=True, text=True)


def test_first_start_makes_the_extension_and_loads_the_models(conn, new_database, server_files):
    models = server_files / "models"
    conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 260, 'm')")
    conn.execute("SELECT llm_init_model('m', 1, 2, 16, 32)")
    with conn.transaction():
        for name in ("a model", "b"):
            save_model.save_model(Database(conn), "m", models / name)
    expected = conn.execute("SELECT llm_generate('low', 8, temperature => 0, model_name => 'm')").fetchone()
    database = new_database("template0")
    done = first_start(database, models)
    assert done.returncode == 0, done.stderr
    assert "loaded model a model" in done.stdout
    with psycopg.connect(database) as other:
        assert other.execute("SELECT llm_generate('low', 8, temperature => 0)").fetchone() == expected
        assert other.execute("SHOW pg_gpt2.model").fetchone() == ("a model",)
        assert other.execute("SELECT model, eos_token_id FROM llm_models WHERE NOT preset ORDER BY 1").fetchall() == [
            ("a model", 259),
            ("b", 259),
        ]


def test_first_start_without_models(new_database, tmp_path):
    database = new_database("template0")
    assert first_start(database, tmp_path).returncode == 0
    with psycopg.connect(database) as other:
        assert other.execute("SELECT count(*) FROM llm_models WHERE NOT preset").fetchone() == (0,)


def test_a_damaged_model_stops_the_first_start(new_database, server_files):
    models = server_files / "damaged"
    (models / "broken").mkdir(parents=True)
    (models / "broken" / "config.json").write_text('{"n_layer": 1}')
    done = first_start(new_database("template0"), models)
    assert done.returncode != 0
    assert "n_head" in done.stderr
