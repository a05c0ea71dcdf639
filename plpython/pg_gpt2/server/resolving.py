"""From the options of a call to what generation takes: ids in the place of texts, the tokens that end, a seed, and room."""

from dataclasses import replace

from ..core.config import GPT2Config
from ..errors import InvalidParameter
from ..generation.constraints.constraint import Constraint
from ..generation.decode import bytes_of_several
from ..generation.generate import Options
from ..generation.options import Call, Generation
from ..generation.sampling import Sampling
from ..tokenizer.bpe import Tokenizer
from . import resources, vocabularies
from .prompts import draw_seed, eos_of
from .storage import weights


def resolved(asked: Generation, sampling: Sampling, model: weights.Model, tokenizer: Tokenizer | None) -> Options:
    """What generation is asked for, with end-of-text, texts and seed resolved. No tokenizer is needed where no text is
    decoded, and the end-of-text token is not the vocabulary's."""
    seed = draw_seed() if asked.seed is None else asked.seed
    lacking = lacking_of(model, tokenizer)
    eos, also_ends = ends_of(asked, model.config, tokenizer, lacking)
    constraint = constraint_of(sampling, model, eos, also_ends)
    if constraint and asked.stop:
        raise InvalidParameter(
            "stop strings could cut a constrained text", hint="Leave them out: it ends where the constraint says."
        )
    look_up = resources.prompt_lookup()
    within = in_ids(sampling, model, lacking)
    return Options(asked.max_tokens, within, eos, seed, look_up=look_up, constraint=constraint, also_ends=also_ends)


def constraint_of(
    sampling: Sampling, model: weights.Model, eos: int | None, also_ends: tuple[int, ...]
) -> Constraint | None:
    """What the text must be, if anything; 55000 for a model without vocabulary."""
    if sampling.constraint is None:
        return None
    from ..generation.constraints.compiled import compiled  # grammars take as long to load as all else of a call

    return compiled(*sampling.constraint, vocabularies.tokenizer_of(model.name), model.config.vocab, eos, also_ends)


def ends_of(
    asked: Call, config: GPT2Config, tokenizer: Tokenizer | None, lacking: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...]]:
    """The token that ends a text, if any, and others that do, too; without those `lacking` in the vocabulary, which never
    come.

    22023 for one that the model does not have.
    """
    if asked.eos_token is None:
        eos = eos_of(config, tokenizer)
        ends = (eos,) if config.stops is None and eos is not None else config.stops or ()
        some = tuple(i for i in dict.fromkeys(ends) if i not in lacking)
        return (some[0] if some else None), some[1:]
    if asked.eos_token >= config.vocab:
        raise InvalidParameter(
            f"eos_token {asked.eos_token} is not in 0..{config.vocab - 1}",
            hint="Give a token id, null for the model's, or -1 for none.",
        )
    return (None if asked.eos_token == -1 else asked.eos_token), ()


def in_ids(sampling: Sampling, model: weights.Model, lacking: tuple[int, ...]) -> Sampling:
    """`sampling` with its texts as ids, and without those `lacking` in the vocabulary, whose rows of weights only pad. 55000
    when there are texts and the model has no vocabulary."""
    found = sampling.in_ids(model.config.vocab, lambda text: vocabularies.tokenizer_of(model.name).encode(text))
    return replace(found, suppress_tokens=(*found.suppress_tokens, *lacking)) if lacking else found


def lacking_of(model: weights.Model, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids of the model that its vocabulary, if any, lacks."""
    return tokenizer.lacking(model.config.vocab) if tokenizer else vocabularies.lacking(model.name, model.config.vocab)


def require_cache(model: weights.Model, lengths: list[int], max_tokens: int) -> None:
    """53200 when keys and values of so many positions, and logits after each text, do not fit."""
    rooms = [length + max_tokens for length in lengths]
    wanted = bytes_of_several(model.decoder_weights, model.config, rooms) + 4 * model.config.vocab * len(rooms)
    positions = sum(min(room, model.config.n_positions) for room in rooms)
    resources.require_memory(wanted, f"logits of {len(rooms)} texts, and keys and values of {positions} positions")
