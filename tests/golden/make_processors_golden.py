"""Writes processors.json: scores before and after each processor of transformers, or of vLLM's formulas, for a value of its option.

Run it with the oracle extras installed: python -m tests.golden.make_processors_golden
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.oracle.test_sampling_oracle import ADJUSTMENTS, EOS, PROMPT, SAID, WARPERS

if __name__ == "__main__":
    logits = (2 * np.random.default_rng(18).normal(size=12)).astype(np.float32)
    found = []
    for name, value, make in [*ADJUSTMENTS, *WARPERS]:
        scores = make(value)(torch.tensor([[*PROMPT, *SAID]]), torch.from_numpy(logits.copy())[None])[0]
        found.append([name, value, [None if score == -torch.inf else float(score) for score in scores]])
    cases = ",\n".join(f"  {json.dumps(case)}" for case in found)
    head = f'"prompt": {PROMPT},\n"said": {SAID},\n"eos": {EOS},\n"logits": {json.dumps(logits.tolist())}'
    Path(__file__).with_name("processors.json").write_text(f'{{\n{head},\n"cases": [\n{cases}\n]\n}}\n')
