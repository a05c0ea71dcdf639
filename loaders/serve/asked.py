"""What a request for completions may ask for, checked as far as it can be without the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_type_hints

from pg_llm_client.names import SamplingKeywords

from .errors import ApiError
from .likely import MOST
from .prompts import Text, several

MOST_TEXTS = 128  # of a request
DEFAULTS = {"max_tokens": 16, "temperature": 1.0, "topp": 1.0, "topk": 0}  # OpenAI's: all tokens may come
FORMATS = "text, json_schema"


class CompletionRequest(TypedDict, total=False):
    """OpenAI's parameters that llm_generate does not have."""

    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
    n: int
    best_of: int
    stream: bool
    stream_options: Mapping[str, Any]
    logprobs: int
    suffix: str
    response_format: Mapping[str, Any]
    user: str


DECLARED = (SamplingKeywords, CompletionRequest)  # the options of llm_generate go by its names and by Hugging Face's
OURS = {*get_type_hints(SamplingKeywords)} - {"model", "echo"}


@dataclass(frozen=True)
class Asked:
    """A request for completions."""

    model: str
    prompts: list[Text]
    n: int
    best_of: int
    logprobs: int | None
    echo: bool
    stream: bool
    with_usage: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Asked":
        """What the body of a request asks for."""
        if "model" not in given:
            raise ApiError("model must be given; /v1/models lists the models", param="model", code="missing_parameter")
        if given.get("suffix"):
            raise ApiError("suffix is not supported: GPT-2 only continues texts", param="suffix", code="unsupported")
        stream, n = given.get("stream", False), given.get("n", 1)
        asked = cls(
            model=given["model"],
            prompts=several(given.get("prompt", ""), "prompt"),
            n=n,
            best_of=given.get("best_of", n),
            logprobs=given.get("logprobs"),
            echo=given.get("echo", False),
            stream=stream,
            with_usage=bool(given.get("stream_options", {}).get("include_usage", False)),
            options=options_of(given),
        )
        within(asked.n, 1, MOST_TEXTS, "n")
        within(asked.best_of, asked.n, MOST_TEXTS, "best_of")
        within(len(asked.prompts) * asked.best_of, 1, MOST_TEXTS, "prompt", "the texts of a request (prompts times n)")
        if asked.logprobs is not None:
            within(asked.logprobs, 0, MOST, "logprobs")
        if stream and asked.best_of > n:
            raise ApiError(
                "best_of cannot be streamed: the best is known at the end", param="best_of", code="unsupported"
            )
        return asked


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of llm_generate in a body, with OpenAI's defaults where they differ from ours."""
    options = {name: value for name, value in given.items() if name in OURS}
    if "max_new_tokens" in options and "max_tokens" not in options:
        options["max_tokens"] = options.pop("max_new_tokens")
    theirs = {"topp": "top_p", "topk": "top_k"}
    for name, value in DEFAULTS.items():
        if theirs.get(name) not in options and not (name == "temperature" and "do_sample" in options):
            options.setdefault(name, value)
    if options.get("top_k") == -1:  # vLLM's word for all
        options["top_k"] = 0
    chosen = given.get("response_format", {"type": "text"})
    if chosen.get("type") == "json_schema":
        described = chosen.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise ApiError(
                "response_format must have json_schema.schema, an object", param="response_format", code="invalid_value"
            )
        options["json_schema"] = schema
    elif chosen.get("type") != "text":
        raise ApiError(
            f"response_format must be one of {FORMATS}: a JSON object without a schema cannot be held",
            param="response_format",
            code="unsupported",
        )
    return options


def within(value: int, least: int, most: int, param: str, what: str | None = None) -> None:
    """ApiError for a number that is not between the two."""
    if not least <= value <= most:
        raise ApiError(
            f"{what or param} must be between {least} and {most}, not {value}", param=param, code="invalid_value"
        )
