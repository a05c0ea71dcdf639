"""Texts that go on together, as llm_generate_batch and llm_generate_rows have them made: by a Batch."""

from collections.abc import Sequence

from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.fast.layout import DecoderWeights
from pg_gpt2.generation.batch import Batch, Outcome
from pg_gpt2.generation.generate import Options, Token
from pg_gpt2.generation.rooms import MOST_TOGETHER


def outcomes(
    params: DecoderWeights,
    config: GPT2Config,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options],
    together: int = MOST_TOGETHER,
) -> dict[int, Outcome]:
    """What became of each prompt, by its number."""
    batch = Batch(params, config, together)
    for number, (prompt, asked) in enumerate(zip(prompts, options, strict=True)):
        batch.add(number, prompt, asked, lambda token: False)
    found: dict[int, Outcome] = {}
    while len(batch):
        found.update(batch.step())
    return found


def texts(
    params: DecoderWeights, config: GPT2Config, prompts: Sequence[Sequence[int]], options: Sequence[Options]
) -> list[list[Token]]:
    """Tokens of each prompt; the error of one that has none."""
    found = outcomes(params, config, prompts, options)
    for outcome in found.values():
        if isinstance(outcome, InvalidParameter):
            raise outcome
    return [found[number] for number in range(len(prompts))]  # type: ignore[misc]
