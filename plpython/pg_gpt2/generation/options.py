"""What a call of generation may ask for: every option declared once (pg_gpt2/options.py says what follows from that).

What an option of `SamplingOptions` does is the function of its name in processors.py.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidParameter
from ..limits import MOST_BEAMS, MOST_SAMPLES, MOST_STOP_CHARACTERS
from ..options import (
    FLAG,
    ID_NUMBERS,
    IDS,
    INTEGER,
    NUMBER,
    TEXT,
    TEXT_NUMBERS,
    TEXTS,
    Declared,
    Domain,
    Kind,
    Option,
    above,
    assemble,
    at_least,
    between,
    by_key,
    checked,
    from_below,
    option,
    read_object,
)

SHORT = Domain(
    f"not empty, and {MOST_STOP_CHARACTERS} characters together at most",
    lambda texts: all(texts) and sum(map(len, texts)) <= MOST_STOP_CHARACTERS,
)

# Options that say what the text must be; constraints/compiled.py says what they mean.
CONSTRAINTS = ("choices", "regex", "json_schema")


def _schema(value: Any) -> str | None:
    from .constraints.json_schema import as_text  # few calls need it, and it takes as long to load as all options

    return as_text(value)


SCHEMA = Kind("object", "Mapping[str, Any]", _schema)


def _biases(most: float, texts: bool) -> Domain:
    def hold(pairs: Collection[tuple[Any, float]]) -> bool:
        return all(abs(number) <= most for _, number in pairs) and (not texts or SHORT.holds([k for k, _ in pairs]))

    return Domain(f"numbers between {-most:g} and {most:g}{', texts ' + SHORT.text if texts else ''}", hold)


@dataclass(frozen=True)
class SamplingOptions(Declared):
    """How the next token is chosen."""

    temperature: float = option(
        1.0,
        NUMBER,
        at_least(0),
        hint="0 takes the most probable token.",
        meaning="Scores are divided by it; 0 takes the most probable token.",
        draws=True,
    )
    topk: int = option(
        50,
        INTEGER,
        at_least(0),
        key="top_k",
        hint="0 keeps all tokens.",
        meaning="So many of the most probable tokens are kept; 0 keeps all.",
        draws=True,
        off=0,
    )
    topp: float = option(
        0.95,
        NUMBER,
        between(0, 1),
        key="top_p",
        hint="1 keeps all tokens.",
        meaning="The fewest tokens are kept that together have this probability; 1 keeps all.",
        draws=True,
        off=1,
    )
    repetition_penalty: float = option(
        1.0,
        NUMBER,
        above(0),
        hint="1 is no penalty, 1.2 a usual one.",
        meaning="Above 1 it makes tokens less probable that occurred, in the prompt, too; 1 does nothing.",
    )
    min_p: float = option(
        0.0,
        NUMBER,
        between(0, 1),
        hint="0 keeps all tokens.",
        meaning="Tokens are kept that have at least this part of the probability of the best one; 0 keeps all.",
        draws=True,
    )
    typical_p: float = option(
        1.0,
        NUMBER,
        above(0, 1),
        hint="1 keeps all tokens, 0.95 is a usual value.",
        meaning="Tokens are kept whose surprise is nearest to the expected one, until they have this probability; 1 keeps all.",
        draws=True,
    )
    epsilon_cutoff: float = option(
        0.0,
        NUMBER,
        from_below(0, 1),
        hint="0 keeps all tokens, 0.0003 to 0.0009 are usual.",
        meaning="Tokens are kept that have at least this probability; 0 keeps all.",
        draws=True,
    )
    eta_cutoff: float = option(
        0.0,
        NUMBER,
        from_below(0, 1),
        hint="0 keeps all tokens, 0.0003 to 0.004 are usual.",
        meaning="As epsilon_cutoff, but lower where the distribution is flat: min(eta, sqrt(eta) * exp(-entropy)); 0 keeps all.",
        draws=True,
    )
    no_repeat_ngram_size: int = option(
        0,
        INTEGER,
        at_least(0),
        hint="3 lets no three tokens follow each other twice, 0 allows all.",
        meaning="So many tokens never follow each other twice, in the prompt and what is generated; 0 allows all.",
    )
    min_new_tokens: int = option(
        0,
        INTEGER,
        at_least(0),
        hint="The end-of-text token does not come before so many.",
        meaning="Before so many tokens the end-of-text token is excluded; stop strings are not.",
    )
    suppress_tokens: Sequence[int] = option(
        (),
        IDS,
        Domain("ids of the model", lambda ids: min(ids, default=0) >= 0),
        hint="Example: [50256].",
        meaning="Tokens that are never taken.",
    )
    bad_words: Sequence[Any] = option(
        (),
        TEXTS,
        SHORT,
        hint='Example: ["damn", " damn"], since a word after a blank is another token.',
        meaning="Texts whose tokens, encoded as they stand, never come one after the other; a word after a blank is another.",
    )
    sequence_bias: Sequence[tuple[Any, float]] = option(
        (),
        TEXT_NUMBERS,
        _biases(1e6, texts=True),
        hint='Example: {" cat": 2.5, " dog": -1}.',
        meaning="What is added to the score of a text's last token where the tokens before it stand there.",
    )
    logit_bias: Sequence[tuple[int, float]] = option(
        (),
        ID_NUMBERS,
        _biases(100, texts=False),
        hint='Example: {"50256": -100}.',
        meaning="What is added to the scores of tokens.",
    )
    presence_penalty: float = option(
        0.0,
        NUMBER,
        between(-2, 2),
        hint="0 does nothing, above it what was generated becomes less probable.",
        meaning="What is taken from the scores of tokens that were generated, the prompt's do not count; 0 does nothing.",
    )
    frequency_penalty: float = option(
        0.0,
        NUMBER,
        between(-2, 2),
        hint="0 does nothing, above it what was generated becomes less probable.",
        meaning="The same, times how often each was generated; 0 does nothing.",
    )
    choices: Sequence[str] | None = option(
        None,
        TEXTS,
        Domain("one text or more", bool),
        hint='Example: ["yes", "no"].',
        meaning="What is generated is one of these texts.",
    )
    regex: str | None = option(
        None,
        TEXT,
        hint="Example: [0-9]{4}-[0-9]{2}-[0-9]{2}.",
        meaning="What is generated matches this regular expression, as a whole.",
    )
    json_schema: str | None = option(
        None,
        SCHEMA,
        hint='Example: {"type": "array", "items": {"enum": ["red", "green"]}}.',
        meaning="What is generated is JSON that is valid under this JSON schema.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(given := [name for name in CONSTRAINTS if getattr(self, name) is not None]) > 1:
            raise InvalidParameter(
                f"{' and '.join(given)} are constraints, and a call has one at most", hint="Give one of them."
            )

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """The constraint that is asked for: the name of its option, and its value."""
        return next(((name, value) for name in CONSTRAINTS if (value := getattr(self, name)) is not None), None)


@dataclass(frozen=True)
class Call(Declared):
    """The options of every call that generates."""

    max_tokens: int = option(
        64,
        INTEGER,
        at_least(0),
        key="max_new_tokens",
        hint="It is the most that is generated; the default is 64.",
        meaning="So many tokens at most.",
    )
    eos_token: int | None = option(
        None,
        INTEGER,
        Domain("-1 or a token id", lambda value: value >= -1),
        key="eos_token_id",
        hint="Give a token id, null for the model's, or -1 for none.",
        meaning="The token that ends generation; null is the model's, -1 none.",
    )
    model_name: str | None = option(
        None,
        TEXT,
        hint="llm_models lists the models.",
        meaning="The model; null is the setting pg_gpt2.model, else gpt2-small, else the only one that has weights.",
    )


@dataclass(frozen=True)
class Generation(Call):
    """The options that drawing tokens adds to those of `Call`."""

    seed: int | None = option(
        None,
        INTEGER,
        hint="Any number of 64 bits; without one, setseed() decides.",
        meaning="The same seed gives the same text; null: setseed() decides.",
    )
    stop: Sequence[str] | None = option(
        None,
        TEXTS,
        key="stop_strings",
        hint='Example: ["\\n\\n"] ends at an empty line.',
        meaning="Texts that end generation and are left out.",
    )


@dataclass(frozen=True)
class TextGeneration(Generation):
    """The option that generation of text adds to those of `Generation`."""

    echo: bool = option(
        True, FLAG, hint="false leaves the prompt out.", meaning="Whether the prompt comes before the completion."
    )


@dataclass(frozen=True)
class Drafting(Declared):
    """The option of calls that generate one text at a time."""

    draft_model: str | None = option(
        None,
        TEXT,
        hint="Name a smaller model with the same vocabulary.",
        meaning="A smaller model of the same vocabulary, whose guesses make the same text come faster; null: none. Only for one"
        " text at a time.",
    )


@dataclass(frozen=True)
class OnePrompt(Declared):
    """The option of calls that take one prompt, and of llm_generate_batch."""

    prompt_ids: Sequence[int] | None = option(
        None,
        IDS,
        hint="llm_encode(prompt, special => true) gives ids.",
        meaning="Token ids in the place of the prompt, which is null then; only for llm_generate, llm_generate_stream and"
        " llm_generate_batch.",
    )


@dataclass(frozen=True)
class ManyTexts(TextGeneration):
    """The option that several prompts add to those of `TextGeneration`."""

    n: int = option(
        1,
        INTEGER,
        between(1, MOST_SAMPLES),
        hint="It is the number of texts for each prompt; 1 is the default.",
        meaning="Texts for each prompt, which is read once; only for llm_generate_batch and llm_generate_rows.",
    )


@dataclass(frozen=True)
class BatchTexts(ManyTexts):
    """The option that llm_generate_batch adds to those of `ManyTexts`."""

    logprobs: bool = option(
        False,
        FLAG,
        hint="true tells the log-probability of each text.",
        meaning="Whether llm_generate_batch tells the log-probability of each text, which costs a few percent of its time.",
    )


@dataclass(frozen=True)
class BeamSearch(Call):
    """The options that beam search adds to those of `Call`."""

    beam_width: int = option(
        4,
        INTEGER,
        between(1, MOST_BEAMS),
        key="num_beams",
        hint="4 to 10 beams are usual.",
        meaning="Beams of llm_beam_search.",
    )
    length_penalty: float = option(
        1.0,
        NUMBER,
        between(-100, 100),
        hint="Above 0 favours longer continuations; Hugging Face's default is 1.",
        meaning="A beam's score is its log-probability over its length to this power; llm_beam_search only.",
    )
    early_stopping: bool = option(
        False,
        FLAG,
        hint="true stops with the first complete beams.",
        meaning="Whether llm_beam_search ends as soon as it has enough complete beams.",
    )


def all_options() -> Iterator[Option]:
    """Every declaration, once."""
    kinds: tuple[type[Declared], ...] = (SamplingOptions, BatchTexts, Drafting, OnePrompt, BeamSearch)
    yield from {name: one for kind in kinds for name, one in kind.options().items()}.values()


KEPT, MOST_KEPT = 16, 4096  # results of `gather`, and characters of what one was made from
_kept: dict[tuple[Any, ...], list[Any]] = {}


def gather(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """An object of each of `kinds` from parameters by name, and from the JSON text under the name options, which may set them.

    22023 for a key that none of them declares, or that says something else than a parameter which was given; what beam search or
    several texts at once have no use for is refused by name. What the last calls gave is kept: rows of a query ask for the same.
    """
    key = (
        kinds,
        tuple((name, type(value), tuple(value) if isinstance(value, list) else value) for name, value in given.items()),
    )
    found = _kept.get(key)
    if found is None:
        found = _gathered(given, kinds)
        while len(_kept) >= KEPT:
            del _kept[next(iter(_kept))]
        if len(repr(key)) <= MOST_KEPT:
            _kept[key] = found
    return list(found)


def _gathered(given: Mapping[str, Any], kinds: tuple[type[Any], ...]) -> list[Any]:
    said = read_object(given.get("options"), '{"top_k": 20}')
    known = by_key(kinds)
    if "draft_model" in said and Drafting not in kinds:
        raise InvalidParameter(
            "draft_model is for one text at a time, and this makes several in shared passes",
            hint="llm_generate, llm_generate_stream, llm_generate_tokens and llm_generate_json take it.",
        )
    if "prompt_ids" in said and OnePrompt not in kinds:
        raise InvalidParameter(
            "prompt_ids is an option of llm_generate, llm_generate_stream and llm_generate_batch only",
            hint="llm_beam_search has a parameter of that name, and llm_generate_tokens takes ids.",
        )
    if BeamSearch in kinds:
        taken = {key: one for key, one in known.items() if not one.draws}
        for key in said:
            if key in known and key not in taken:
                raise InvalidParameter(
                    f"{key} is for drawing tokens, and beam search draws none",
                    hint=f"It takes {', '.join(dict.fromkeys(one.keys[0] for one in taken.values()))}.",
                )
        known = taken
    return assemble(kinds, given, checked(said, known, "llm_generation_options"))
