"""Renders chat templates as transformers does, in a process of its own: an object of JSON a line comes in, and one goes out.

Template and tokens are the work of whoever may write a model's rows. Jinja's sandbox keeps a template from what Python has, and
the limit that is set here from the machine's memory; how long it takes is watched by renderer.py, which started this process and
ends it.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .hiding import hidden_in

MOST_MEMORY = 1 << 30  # bytes of addresses
MOST_BYTES = 4 << 20  # of a prompt, far more than a window takes
MOST_REASON = 1000  # characters of what a template says against a chat
READY = b"ready\n"


class Generation(Extension):
    """{% generation %}, which tells trainers what an assistant wrote, and renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements up to {% endgeneration %}."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PlainNamespace(Namespace):
    """Jinja's namespace() without names that begin with an underscore, which are Python's."""

    def __init__(*args: Any, **named: Any) -> None:  # so that a template may have an attribute `self`
        Namespace.__init__(args[0])
        for name, value in dict(*args[1:], **named).items():
            args[0][name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Without the escapes of HTML that Jinja's own has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": PlainNamespace,
    }
    return made


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def render(
    template: str, messages: Sequence[Mapping[str, str]], special: Collection[str], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The text of a chat, and what is hidden in it of the `special` tokens by the characters that stand for it.

    TemplateError where the template refuses the messages, and whatever Python raises where it is wrong.
    """
    given, hidden = hidden_in(messages, special, template)
    text = _compiled(template).render(messages=given, **values)
    if len(text.encode()) > MOST_BYTES:  # which half a surrogate pair does not have
        raise TemplateError(f"it makes a text of more than {MOST_BYTES:,} bytes")
    return {"text": text, "hidden": hidden.texts}


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    except (ImportError, OSError, ValueError):  # not on Windows, and not every system obeys
        pass


def _answer(line: bytes) -> dict[str, Any]:
    """What `render` gives, or what is wrong: {"error": ...}."""
    try:
        return render(**json.loads(line))
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # of a template anything may come
        reason = str(error)[:MOST_REASON] or type(error).__name__
        return {"error": reason.encode(errors="replace").decode()}


def main() -> None:
    """Answer lines until there are no more."""
    _limit_memory()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(_answer(line)).encode() + b"\n")
        sys.stdout.buffer.flush()
