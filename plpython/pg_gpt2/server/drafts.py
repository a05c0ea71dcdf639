"""The model that an option names as the one that makes drafts: the caller must see it, and it must have the same vocabulary."""

from ..errors import InvalidParameter, OutOfMemory
from ..generation.decode import bytes_of_several
from ..generation.drafting import DraftModel
from ..generation.options import Drafting
from . import resources, vocabularies
from .storage import weights


def draft_of(model: weights.Model, drafting: Drafting, room: int) -> DraftModel | None:
    """What makes drafts for a text of `room` tokens by `model`; None where none is asked for, or where company changes bits.

    42704 for a model that is not there or that the caller does not see, 55000 for one without weights, 22023 for one with another
    vocabulary, 53200 where there is no room for both.
    """
    if drafting.draft_model is None:
        return None
    draft = weights.load(drafting.draft_model)
    _require_same_vocabulary(model, draft)
    if not model.shared and weights.cache.get(model.name, model.version) is None:  # it had to make room for the draft
        raise OutOfMemory(
            f'pg_gpt2.max_memory does not allow for "{model.name}" and its draft model "{draft.name}" together',
            hint="Leave draft_model out, or raise pg_gpt2.max_memory.",
        )
    if not model.decoder_weights.exact:
        return None
    wanted = bytes_of_several(draft.decoder_weights, draft.config, [room]) + 4 * draft.config.vocab
    resources.require_memory(wanted, "logits, keys and values of the draft model")
    return DraftModel(draft.decoder_weights, draft.config)


def _require_same_vocabulary(model: weights.Model, draft: weights.Model) -> None:
    """A draft model without tokens of its own has learned the ids of another vocabulary, and is taken at its word."""
    hint = (
        "It must have the model's vocabulary: the base of an adapter, or a smaller model that learned the same tokens."
    )
    ours, theirs = model.config.vocab, draft.config.vocab
    if ours != theirs:
        raise InvalidParameter(
            f'draft_model "{draft.name}" has {theirs} token ids, and "{model.name}" has {ours}', hint=hint
        )
    mine, other = vocabularies.find(model.name), vocabularies.find(draft.name)
    if mine is None or other is None or mine.tokens == other.tokens:
        return
    ids = sorted(mine.tokens.keys() | other.tokens.keys())
    first = next(i for i in ids if mine.tokens.get(i) != other.tokens.get(i))
    raise InvalidParameter(
        f'draft_model "{draft.name}" has another vocabulary than "{model.name}": token {first} differs', hint=hint
    )
