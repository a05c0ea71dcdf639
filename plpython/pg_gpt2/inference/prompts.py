"""What generation starts from: a prompt as ids the model has, and a seed.

A prompt longer than the window keeps its tail, which callers cut off; the NOTICE about it is made here.
"""

from .. import db
from ..errors import InvalidParameter, require
from ..storage import weights
from ..tokenizer.bpe import Tokenizer
from .decode import check_ids


def encode_prompt(prompt: str, model: weights.Model, tokenizer: Tokenizer) -> list[int]:
    """Ids of the prompt; the end-of-text token for an empty one; with a NOTICE when only its tail fits the window."""
    ids = tokenizer.encode(prompt)
    if not ids:
        return [end_of_text(model, tokenizer, "an empty prompt")]
    check_ids(ids, model.config, model.name)
    _notice_long_prompt(len(ids), model)
    return ids


def end_of_text(model: weights.Model, tokenizer: Tokenizer, what: str) -> int:
    """The token that texts begin after; 22023 saying `what` needs it where there is none."""
    eos = model.config.eos_token_id if model.config.eos_token_id is not None else tokenizer.eos_token_id
    if eos is None:
        raise InvalidParameter(
            f'{what} needs an end-of-text token, and model "{model.name}" has none',
            hint="Set eos_token_id in llm_model_config.",
        )
    return eos


def check_prompt(ids: list[int] | None, model: weights.Model) -> list[int]:
    """Prompt ids as given, checked; with a NOTICE when only their tail fits the window."""
    require(ids=ids)
    if not ids:
        raise InvalidParameter("ids must not be empty", hint="Start from the end-of-text token, 50256 for GPT-2.")
    check_ids(ids, model.config, model.name)
    _notice_long_prompt(len(ids), model)
    return ids


def _notice_long_prompt(length: int, model: weights.Model) -> None:
    if length > model.config.n_positions:
        db.notice(
            f"the prompt has {length} tokens; only the last {model.config.n_positions}, the model's window, are used"
        )


def draw_seed() -> int:
    """A seed from the server's random(), which setseed() fixes."""
    row = db.row("SELECT random() AS value")
    return int((row or {})["value"] * 2**53)
