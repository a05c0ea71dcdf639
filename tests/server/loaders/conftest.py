"""A model directory and a vocabulary, as files that the loaders read."""

import json
from pathlib import Path

import pytest
import safetensors.numpy
from tokenizers import ByteLevelBPETokenizer

from tests.server.loaders.hub import CONFIG, hub_names, weights


@pytest.fixture
def directory(tmp_path):
    """A model directory as transformers writes it, without a vocabulary."""
    path = tmp_path / "hub"
    path.mkdir()
    safetensors.numpy.save_file(hub_names(weights()), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG.to_hub()))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Directory with vocab.json and merges.txt, 300 tokens; the last is <|endoftext|>."""
    path = tmp_path_factory.mktemp("vocabulary")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [Path(__file__).with_name("test_load_model.py").read_text()], vocab_size=299, show_progress=False
    )
    ids = trained.get_vocab()
    assert len(ids) == 299
    (path / "vocab.json").write_text(json.dumps(ids | {"<|endoftext|>": 299}))
    trained.save_model(str(path), "trained")
    (path / "merges.txt").write_text((path / "trained-merges.txt").read_text())
    return path
