"""Models, texts and choices that the tests of choosing share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pg_gpt2.core.config import Adapter, GPT2Config
from pg_gpt2.fast import layout
from pg_gpt2.formats.vocab import parse_merges, parse_vocab
from pg_gpt2.generation.choosing import Choices

from tests.engine.small_models import name_of
from tests.engine.tokenizers import from_strings

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer" / "learned"
TOKENIZER = from_strings(
    parse_vocab((GOLDEN / "vocab.json").read_bytes()), parse_merges((GOLDEN / "merges.txt").read_bytes())
)
CONFIG = GPT2Config(n_layer=2, n_head=2, d_model=64, n_positions=48, vocab=max(TOKENIZER.tokens) + 1)
ADAPTED = replace(CONFIG, adapter=Adapter(r=3, targets=("attn.c_attn", "attn.c_proj")))
models = pytest.mark.parametrize("config", [CONFIG, ADAPTED], ids=name_of)
EOS = TOKENIZER.eos_token_id or 0
LABELS = ["yes", "no", "maybe not", "yesterday", "no one", "it's", "no one else", "'t"]
# Where this CPU and BLAS do not keep the rows of panels alone, nothing asks for panels but these tests.
same_bits = pytest.mark.parametrize(
    "kind", ["panels", "rows", "plain"] if layout.in_panels(CONFIG) else ["rows", "plain"], indirect=True
)


def arranged(params: dict[str, np.ndarray], config: GPT2Config, kind: str, identity: object = None):
    weights = layout.DecoderWeights(params) if kind == "plain" else layout.lay_out(dict(params), config)
    weights.identity = identity
    return weights


def random_texts(rng: np.random.Generator, count: int, vocab: int = 3, length: int = 7) -> list[list[int]]:
    """Many begin alike, and some are the beginning of others."""
    return [rng.integers(0, vocab, rng.integers(1, length)).tolist() for _ in range(count)]


def encode_pair(prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """As `_encode_pair` of lm-evaluation-harness, and what its `loglikelihood` does about an empty prompt."""
    blanks = len(prompt) - len(prompt.rstrip())
    if blanks:
        prompt, choice = prompt[:-blanks], prompt[-blanks:] + choice
    if not prompt:
        return [EOS], TOKENIZER.encode(choice)
    context = TOKENIZER.encode(prompt)
    return context, TOKENIZER.encode(prompt + choice)[len(context) :]


def choices_of(texts: list[str], config: GPT2Config = CONFIG) -> Choices:
    return Choices(texts, TOKENIZER, config, "m", lambda what: EOS)
