"""Models of the hub, from a server that answers as the hub does: resumed, checked by hash, found again without network."""

import hashlib
import json
import os
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants
from pg_gpt2.core.config import GPT2Config

from loaders import hub, load_adapter, load_model
from loaders.common import Database, LoaderError
from loaders.hub_model import Config, HubModel
from loaders.peft_adapter import PeftAdapter, peft_name

COMMIT = "c" * 40
CONFIG = Config(n_layer=1, n_head=2, d_model=16, n_positions=32, vocab=300, eos_token_id=299)


def weights():
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in CONFIG.shapes().items()}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """What the hub would answer for acme/tiny, and what goes wrong on the way."""

    def __init__(self):
        self.files = {
            "config.json": json.dumps(CONFIG.to_hub()).encode(),
            "model.safetensors": safetensors.numpy.save(weights()),
            "pytorch_model.bin": b"a pickle, which nobody asks for",
            "onnx/model.safetensors": b"of another program",
        }
        self.served = dict(self.files)
        self.cut_after = None  # bytes of the weights in one answer
        self.ranges = True
        self.asked = []

    def digest(self, name):
        data = self.files[name]
        return sha256(data) if name.endswith(".safetensors") else git_sha1(data)

    def listing(self):
        return {
            "sha": COMMIT,
            "siblings": [
                {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
                | ({"lfs": {"sha256": sha256(data), "size": len(data)}} if name.endswith(".safetensors") else {})
                for name, data in self.files.items()
            ],
        }


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        found: Hub = self.server.hub
        if self.path.startswith("/api/models/acme/tiny/revision/main"):
            self.answer(json.dumps(found.listing()).encode())
        elif name := re.fullmatch(f"/acme/tiny/resolve/{COMMIT}/(.*)", self.path):
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            found.asked.append((name[1], start))
            data = found.served[name[1]]
            start = start if found.ranges else 0
            self.answer(
                data[start:], 206 if start else 200, found.cut_after if name[1] == "model.safetensors" else None
            )
        else:
            self.send_error(404)

    def answer(self, data, status=200, cut_after=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut_after])


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """The hub, and an empty cache."""
    found = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.hub = found
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()  # looks so often for its end
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PAUSE", 0)
        yield found
        server.shutdown()


def fetched():
    return hub.Repository("acme/tiny", None).fetch()


def blob(remote, tmp_path, name="model.safetensors"):
    return tmp_path / "cache" / "models--acme--tiny" / "blobs" / remote.digest(name)


def test_model_of_the_hub_goes_into_the_database(remote, conn):
    with conn.transaction():
        load_model.load_model(Database(conn), load_model.locate("acme/tiny"), "from the hub")
    (data,) = conn.execute("SELECT data FROM llm_param WHERE model = 'from the hub' AND name = 'wpe'").fetchone()
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(32, 16), weights()["wpe"])
    assert {name for name, _ in remote.asked} == {"config.json", "model.safetensors"}


def test_adapter_of_the_hub_goes_into_the_database(remote, conn, monkeypatch):
    """Its two files come, of a repository that has more; without a network, from the cache."""
    with conn.transaction():
        load_model.load_model(Database(conn), load_model.locate("acme/tiny"), "base of the hub")
    remote.asked.clear()
    rng = np.random.default_rng(4)
    tensors = {
        peft_name("h.0.attn.c_attn.lora_A"): rng.standard_normal((8, 16)).astype(np.float32),
        peft_name("h.0.attn.c_attn.lora_B"): rng.standard_normal((48, 8)).astype(np.float32),
    }
    added = {
        "adapter_config.json": b'{"peft_type": "LORA"}',
        "adapter_model.safetensors": safetensors.numpy.save(tensors),
    }
    remote.files |= added
    remote.served |= added
    fetched = load_model.locate("acme/tiny", adapter=True)
    assert {name for name, _ in remote.asked} == set(added)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model.locate("acme/tiny", adapter=True) == fetched
    with conn.transaction():
        load_adapter.load_adapter(Database(conn), fetched, "base of the hub", "from the hub too")
    (data,) = conn.execute(
        "SELECT data FROM llm_param WHERE model = 'from the hub too' AND name = 'h.0.attn.c_attn.lora_B'"
    ).fetchone()
    np.testing.assert_array_equal(
        np.frombuffer(data, "<f4").reshape(8, 48).T, tensors[peft_name("h.0.attn.c_attn.lora_B")]
    )


def test_model_of_the_hub_that_is_no_adapter(remote):
    with pytest.raises(LoaderError, match=r"has no adapter_config\.json"):
        PeftAdapter(load_model.locate("acme/tiny", adapter=True), GPT2Config(1, 2, 16, 32, 300))


def test_an_adapter_is_no_weights_of_a_model(remote, monkeypatch):
    """Of a repository that has both, each fetches its own; of one that has an adapter only, a model says what it lacks."""
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"of an adapter"}
    remote.files |= adapter
    del remote.files["model.safetensors"]
    remote.served = dict(remote.files)
    fetched()
    assert {name for name, _ in remote.asked} == {"config.json", "pytorch_model.bin"}
    remote.files = remote.served = dict(adapter)
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(LoaderError, match=r"has no model\.safetensors"):
        HubModel(fetched())
    load_model.locate("acme/tiny", adapter=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoaderError, match="HF_HUB_OFFLINE"):
        fetched()


def test_what_is_there_is_not_fetched_again(remote):
    fetched()
    remote.asked.clear()
    fetched()
    assert remote.asked == []


def test_the_hub_library_finds_it_in_its_cache(remote):
    """As transformers would: the layout is the library's."""
    snapshot = fetched()
    found = huggingface_hub.snapshot_download("acme/tiny", cache_dir=constants.HF_HUB_CACHE, local_files_only=True)
    assert os.path.samefile(found, snapshot)
    assert (snapshot / "model.safetensors").is_symlink()


def test_connections_that_end_early_are_taken_up_where_they_ended(remote):
    remote.cut_after = 5000
    assert set(HubModel(fetched()).tensors) == set(CONFIG.shapes())
    starts = [start for name, start in remote.asked if name == "model.safetensors"]
    assert starts == list(range(0, len(remote.files["model.safetensors"]), 5000))


def test_interrupted_download_goes_on_in_another_process(remote, tmp_path):
    """What a killed one leaves is the beginning of the file under a name of its own."""
    whole = blob(remote, tmp_path)
    whole.parent.mkdir(parents=True)
    whole.with_name(f"{whole.name}.pg_gpt2").write_bytes(remote.files["model.safetensors"][:4321])
    assert set(HubModel(fetched()).tensors) == set(CONFIG.shapes())
    assert ("model.safetensors", 4321) in remote.asked
    assert sorted(path.name for path in whole.parent.iterdir()) == sorted(
        remote.digest(name) for name in ("config.json", "model.safetensors")
    )


def test_server_that_knows_no_ranges(remote, tmp_path):
    remote.ranges = False
    whole = blob(remote, tmp_path)
    whole.parent.mkdir(parents=True)
    whole.with_name(f"{whole.name}.pg_gpt2").write_bytes(b"x" * 4321)
    assert set(HubModel(fetched()).tensors) == set(CONFIG.shapes())


def test_server_that_never_gets_further(remote):
    remote.cut_after = 0
    with pytest.raises(LoaderError, match=r"0 of [\d,]+ bytes came .* run the same command again"):
        fetched()
    assert len(remote.asked) == 1 + hub.ATTEMPTS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_download_is_refused_and_removed(remote, tmp_path, name):
    good = remote.served[name]
    remote.served[name] = good[:-1] + b"?"
    with pytest.raises(LoaderError, match=f"{name} is damaged: its hash is .* should be {remote.digest(name)}"):
        fetched()
    assert not blob(remote, tmp_path, name).exists()
    remote.served[name] = good
    fetched()


def test_damage_in_the_cache_is_found(remote, tmp_path, monkeypatch):
    fetched()
    with open(blob(remote, tmp_path), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(LoaderError, match=r"model\.safetensors is damaged"):
        fetched()


@pytest.mark.parametrize("reason", ["HF_HUB_OFFLINE", "no network"])
def test_without_network_the_cache_serves(remote, monkeypatch, reason):
    snapshot = fetched()
    if reason == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote.asked.clear()
    assert fetched() == snapshot
    assert remote.asked == []
    with pytest.raises(
        LoaderError, match=r"other/model is not a directory here, the cache .* does not have revision main"
    ):
        hub.Repository("other/model", None).fetch()


def test_unknown_model(remote):
    with pytest.raises(LoaderError, match=r"acme/none is not a directory here, nor a model of the hub .* \(HTTP 404\)"):
        load_model.locate("acme/none")


def test_token_goes_to_the_hub_alone(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    asked = hub.request("acme/tiny")
    assert asked.get_header("Authorization") == "Bearer hf_secret"
    assert "Authorization" not in asked.headers  # which a redirect takes along


def test_shards_beside_the_whole_are_not_fetched(remote):
    shards = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    remote.files |= dict.fromkeys(shards, b"of an earlier save")
    remote.served = dict(remote.files)
    assert sorted(path.name for path in fetched().iterdir()) == ["config.json", "model.safetensors"]
    del remote.files["model.safetensors"]
    fetched()
    assert {name for name, _ in remote.asked} == {"config.json", "model.safetensors", *shards}


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "gguf"])
def test_without_safetensors_other_weights_are_fetched(remote, monkeypatch, kind):
    del remote.files["model.safetensors"]
    if kind == "gguf":
        del remote.files["pytorch_model.bin"]
        del remote.files["config.json"]
        remote.files |= {"tiny.Q8_0.gguf": b"GGUF eight bits", "tiny.Q4_K.gguf": b"GGUF four"}
        with pytest.raises(
            LoaderError, match=r"has 2 GGUF files; name one with --file: tiny\.Q8_0\.gguf, tiny\.Q4_K\.gguf"
        ):
            fetched()
    remote.served = dict(remote.files)
    file = "tiny.Q4_K.gguf" if kind == "gguf" else kind
    expected = remote.files[file]
    assert load_model.locate("acme/tiny", file=file).read_bytes() == expected
    assert {name for name, _ in remote.asked} <= {"config.json", file}
    with pytest.raises(LoaderError, match="has no file other"):
        load_model.locate("acme/tiny", file="other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (fetched() / file).read_bytes() == expected
    assert load_model.locate("acme/tiny", file=file).read_bytes() == expected
    with pytest.raises(LoaderError, match="HF_HUB_OFFLINE"):
        load_model.locate("acme/tiny", file="other")


def test_names_of_models(tmp_path):
    for name in ("tiny.Q8_0.gguf", "model.safetensors"):
        (tmp_path / name).touch()
    assert load_model.default_name(str(tmp_path / "tiny.Q8_0.gguf")) == "tiny.Q8_0"
    assert load_model.default_name(str(tmp_path / "model.safetensors")) == tmp_path.name
    assert load_model.default_name("gpt2") == "gpt2-small"
    assert load_model.default_name("openai-community/gpt2-xl") == "gpt2-xl"
