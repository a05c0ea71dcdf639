"""What generation starts from: a prompt as ids of the model, and a seed.

A prompt longer than the window keeps its tail only, and a NOTICE says so.
"""

from ..core.config import GPT2Config
from ..errors import InvalidParameter, WrongState, require
from ..generation.decode import check_ids
from ..tokenizer.bpe import Tokenizer
from . import db
from .storage import weights


def encode_prompt(prompt: str, model: weights.Model, tokenizer: Tokenizer) -> list[int]:
    """Ids of the prompt, cut to the window; the end-of-text token for an empty prompt."""
    return _tail(prompt_ids(prompt, model, tokenizer), model)


def prompt_ids(prompt: str, model: weights.Model, tokenizer: Tokenizer) -> list[int]:
    """Ids of the prompt, however many; the end-of-text token for an empty prompt."""
    ids = tokenizer.encode(prompt)
    if not ids:
        return [end_of_text(model.name, model.config, tokenizer, "an empty prompt")]
    check_ids(ids, model.config, model.name)
    return ids


def end_of_text(model: str, config: GPT2Config | None, tokenizer: Tokenizer, what: str) -> int:
    """The token between texts; a model without one is refused (55000), saying that `what` needs it."""
    eos = eos_of(config, tokenizer)
    if eos is None:
        raise WrongState(
            f'{what} needs an end-of-text token, and model "{model}" has none',
            hint="Set eos_token_id in llm_model_config, or add a token <|endoftext|> to llm_bpe_vocab.",
        )
    return eos


def eos_of(config: GPT2Config | None, tokenizer: Tokenizer | None) -> int | None:
    """The token between texts: the configuration's, else the vocabulary's."""
    if config is not None and config.eos_token_id is not None:
        return config.eos_token_id
    return None if tokenizer is None else tokenizer.eos_token_id


def check_prompt(ids: list[int] | None, model: weights.Model) -> list[int]:
    """Prompt ids that a caller gave, checked and cut to the window."""
    require(ids=ids)
    if not ids:
        raise InvalidParameter("ids must not be empty", hint="Start from the end-of-text token, 50256 for GPT-2.")
    check_ids(ids, model.config, model.name)
    return _tail(ids, model)


def _tail(ids: list[int], model: weights.Model) -> list[int]:
    window = model.config.n_positions
    if len(ids) > window:
        db.notice(f"the prompt has {len(ids)} tokens; only the last {window}, the model's window, are used")
    return ids[-window:]


def draw_seed() -> int:
    """A seed from the server's random(), which setseed() fixes."""
    row = db.row("SELECT random() AS value")
    return int((row or {})["value"] * 2**53)
