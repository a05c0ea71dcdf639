"""The names that Hugging Face's `generate` has for our parameters, accepted beside ours.

`do_sample=False` is temperature 0, and `num_beams` above 1 makes `generate` search beams. A parameter given under both
names, or beside one that contradicts it, is a TypeError.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, TypeVar, get_type_hints

from .generation_options import BEAM_KEYS, BatchOptions, BeamOptions, GenerationOptions, JsonOptions, ManyOptions

F = TypeVar("F", bound=Callable[..., Any])

OURS = {"max_new_tokens": "max_tokens", "top_k": "topk", "top_p": "topp"}
OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")
BEAMS_TAKE = {"prompt", "max_tokens", "model", "eos_token", "echo", *OF_BEAMS, *BEAM_KEYS}


class OtherNames(TypedDict, total=False):
    """Hugging Face's names of what says how to sample; `num_beams` must be 1."""

    max_new_tokens: int
    top_k: int
    top_p: float
    do_sample: bool
    num_beams: int


class SamplingKeywords(GenerationOptions, OtherNames, total=False):
    """How to sample, in our names and in Hugging Face's."""


class ManyKeywords(ManyOptions, OtherNames, total=False):
    """The same for several prompts."""


class BatchKeywords(BatchOptions, OtherNames, total=False):
    """The same where it is told how each text ended."""


class GenerateKeywords(SamplingKeywords, total=False):
    """The same, and what beam search takes where `num_beams` is above 1."""

    length_penalty: float
    early_stopping: bool


class JsonKeywords(JsonOptions, total=False):
    """How to generate JSON, in our names and in Hugging Face's."""

    max_new_tokens: int
    top_k: int
    top_p: float
    do_sample: bool


class BeamKeywords(BeamOptions, total=False):
    """How to search beams, in our names and in Hugging Face's."""

    max_new_tokens: int
    num_beams: int


def takes(options: type[Any]) -> Callable[[F], F]:
    """Decorates a method that ends in `**options`: that it may be called with Hugging Face's names for them.

    The method gets them by our names, and those of beam search as they are. `help` shows the options with their defaults.
    """

    def decorate(method: F) -> F:
        name = method.__name__
        signature = inspect.signature(method)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        keywords = list(_parameters(options))
        ours = {p.name for p in (*named, *keywords)}
        renamed = OURS | ({"num_beams": "beam_width"} if "beam_width" in ours else {})

        @functools.wraps(method)
        def translated(*args: Any, **given: Any) -> Any:
            _rename(name, given, renamed)
            if "temperature" in ours:
                _resolve_do_sample(name, given)
                _resolve_beams(name, given)
            unknown = given.keys() - ours - set(OF_BEAMS)
            if unknown:
                raise TypeError(f"{name}() got an unexpected keyword argument '{min(unknown)}'")
            return method(*args, **given)

        translated.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        return translated  # type: ignore[return-value]

    return decorate


def _parameters(options: type[Any]) -> Iterator[inspect.Parameter]:
    for name, kind in get_type_hints(options, include_extras=True).items():
        (default,) = kind.__metadata__
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind.__origin__)


def of_beams(options: GenerateKeywords) -> dict[str, Any]:
    """The options of `generate` with `num_beams` as those of `beam_search`."""
    return {name: value for name, value in options.items() if name != "echo"}


def _rename(name: str, given: dict[str, Any], ours: dict[str, str]) -> None:
    for theirs, our in ours.items():
        if theirs in given:
            if our in given:
                raise TypeError(f"{name}() got both {our} and {theirs}, which is Hugging Face's name for it")
            given[our] = given.pop(theirs)


def _resolve_do_sample(name: str, given: dict[str, Any]) -> None:
    if "do_sample" not in given:
        return
    sample, temperature = given.pop("do_sample"), given.get("temperature")
    if temperature is not None and bool(sample) != (temperature != 0):
        raise TypeError(
            f"{name}() got do_sample={sample} and temperature={temperature}, which contradict each other: temperature 0"
            " means no sampling"
        )
    if not sample:
        given["temperature"] = 0.0


def _resolve_beams(name: str, given: dict[str, Any]) -> None:
    beams = given.get("num_beams", 1)
    if beams == 1:
        given.pop("num_beams", None)
        for theirs in given.keys() & set(OF_BEAMS):
            raise TypeError(f"{name}() got {theirs}, which needs num_beams above 1")
        return
    if name != "generate":
        raise TypeError(f"{name}() got num_beams={beams}, but only generate() and beam_search() search beams")
    if given.get("temperature") == 0:
        del given["temperature"]
    for other in sorted(given.keys() - BEAMS_TAKE):
        raise TypeError(f"{name}() got {other}, which beam search (num_beams={beams}) does not take")
