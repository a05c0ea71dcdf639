"""What a request for a chat may ask for, checked as far as it can be without the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from pg_llm_client.names import SamplingKeywords

from ..asked import MOST_TEXTS, Asked, options_of, within
from ..errors import ApiError
from ..likely import MOST

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}  # what a template knows them as
LIMITS = ("max_completion_tokens", "max_tokens", "max_new_tokens")  # names of the same, OpenAI's first
NOT_HERE = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "modalities", "audio", "echo")
OF_MESSAGES = {"role", "content", "name"}


class ChatRequest(TypedDict, total=False):
    """OpenAI's parameters that llm_generate does not have, and those of NOT_HERE."""

    messages: Sequence[Mapping[str, Any]]
    max_completion_tokens: int
    n: int
    stream: bool
    stream_options: Mapping[str, Any]
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any]
    user: str
    tools: Any
    tool_choice: Any
    parallel_tool_calls: Any
    functions: Any
    function_call: Any
    modalities: Any
    audio: Any


DECLARED = (SamplingKeywords, ChatRequest)


@dataclass(frozen=True)
class ChatAsked(Asked):
    """A request for a chat. Without max_tokens among its options, the answer may have what the window leaves."""

    messages: list[dict[str, str]]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ChatAsked":
        """What the body of a request asks for."""
        for name in ("model", "messages"):
            if name not in given:
                raise ApiError(f"{name} must be given", param=name, code="missing_parameter")
        for name in NOT_HERE:
            if given.get(name):
                raise ApiError(f"{name} is not supported: an answer is a text", param=name, code="unsupported")
        n = given.get("n", 1)
        within(n, 1, MOST_TEXTS, "n")
        return cls(
            model=given["model"],
            prompts=[],
            n=n,
            best_of=n,
            logprobs=_logprobs(given),
            echo=False,
            stream=given.get("stream", False),
            with_usage=bool(given.get("stream_options", {}).get("include_usage", False)),
            options=_options(given),
            messages=_messages(given["messages"]),
        )


def _logprobs(given: Mapping[str, Any]) -> int | None:
    top = given.get("top_logprobs", 0)
    within(top, 0, MOST, "top_logprobs")
    if top and not given.get("logprobs"):
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    return top if given.get("logprobs") else None


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    limits = {name: given[name] for name in LIMITS if name in given}
    if len({*limits.values()}) > 1:
        first, second, *_ = limits
        raise ApiError(f"{first} and {second} differ; give one of them", param=first, code="invalid_value")
    rest = {name: value for name, value in given.items() if name not in LIMITS}
    options = options_of({**rest, "max_tokens": next(iter(limits.values()), 0)})
    if not limits:
        del options["max_tokens"]
    return options


def _messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages as a template gets them. ApiError for one that is not a text by somebody."""
    if not given:
        raise ApiError("messages must not be empty", param="messages", code="invalid_value")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(given)]


def _message(given: Mapping[str, Any], param: str) -> dict[str, str]:
    said = {name: value for name, value in given.items() if value not in (None, [], {})}
    if other := next((name for name in said if name not in OF_MESSAGES), None):
        raise ApiError(f"{param}.{other} is not supported", param=f"{param}.{other}", code="unsupported")
    role = said.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"{param}.role must be one of {', '.join(ROLES)}", param=f"{param}.role", code="unsupported")
    found = {"role": ROLES[role], "content": _content(given.get("content"), f"{param}.content")}
    if "name" in said:
        if not isinstance(said["name"], str):
            raise ApiError(f"{param}.name must be a string", param=f"{param}.name", code="invalid_type")
        found["name"] = said["name"]
    return found


def _content(given: Any, param: str) -> str:
    """A text, or the texts of several parts, one a line; an empty one where there is none."""
    if isinstance(given, str) or given is None:
        return given or ""
    if not isinstance(given, list) or not all(isinstance(part, dict) for part in given):
        raise ApiError(f"{param} must be a string or an array of parts", param=param, code="invalid_type")
    for part in given:
        if part.get("type") != "text":
            raise ApiError(
                f"{param}: a part of type {part.get('type')} is not supported; text is", param=param, code="unsupported"
            )
        if not isinstance(part.get("text"), str):
            raise ApiError(f"{param}: the text of a part must be a string", param=param, code="invalid_type")
    return "\n".join(part["text"] for part in given)
