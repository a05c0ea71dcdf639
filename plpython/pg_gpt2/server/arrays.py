"""Arrays of numbers that SQL hands over in their binary form, as array_send has it: a function gets lists.

PL/Python would make an object of each element before any code of ours runs, and nothing could interrupt it.
"""

import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InvalidParameter, MalformedData
from ..limits import MOST_IDS
from . import db

Function = Callable[..., Any]
ELEMENTS = {  # of a type: the oid, and what array_send has of an element, for struct and for NumPy
    name: (oid, struct.Struct(f">i{code}"), np.dtype(f">i,>{code}"))
    for name, oid, code in (("integer", 23, "i"), ("bigint", 20, "q"), ("double precision", 701, "d"))
}
NULL_LENGTH = b"\xff" * 4  # of an element, as array_send has it


def received(**types: str) -> Callable[[Function], Function]:
    """Decorate a function to which SQL passes arrays of numbers in binary form, so that it gets lists: `name="integer"`."""

    def of(function: Function) -> Function:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def receiving(*args: Any, **named: Any) -> Any:
            given = dict(zip(names, args)) | named
            for name, kind in types.items():
                if given[name] is not None:
                    given[name] = _elements_sent(given[name], name, kind)
            return function(**given)

        return receiving

    return of


def _elements_sent(sent: bytes, name: str, kind: str) -> list[Any]:
    """The elements of an array that SQL passed as array_send(name), or as '' where it has more than MOST_IDS.

    The form: number of dimensions, whether there are nulls, type; of each dimension size and lower bound; of each element length
    and value, big-endian. A null has the length -1 and no value.
    """
    oid, element, pair = ELEMENTS[kind]
    if not sent or len(sent) > 20 + element.size * MOST_IDS:
        raise InvalidParameter(
            f"{name} has more than {MOST_IDS} elements", hint=f"Give a part of them: ({name})[1:1000000], for example."
        )
    dimensions, nulls, given, size = struct.unpack(">4i", sent[:16].ljust(16, b"\0"))  # an empty array has no size
    if given == oid:
        if dimensions > 1:
            raise not_one_dimension(name)
        if nulls:
            found = _elements_or_nulls(sent, element)
            if len(found) == size:
                return found
        elif len(sent) == 12 + 8 * dimensions + element.size * size:
            return np.frombuffer(sent[12 + 8 * dimensions :], pair)["f1"].tolist()
    raise MalformedData(f"{name} is not what array_send gives", hint=f"array_send({name}), with {name} {kind}[].")


def _elements_or_nulls(sent: bytes, element: struct.Struct) -> list[Any]:
    """Elements of an array of one dimension, up to the end of the data."""
    found: list[Any] = []
    place = 20
    while place <= len(sent) - len(NULL_LENGTH):
        if sent.startswith(NULL_LENGTH, place):
            found.append(None)
            place += len(NULL_LENGTH)
        elif place + element.size > len(sent):
            break
        else:
            found.append(element.unpack_from(sent, place)[1])
            place += element.size
        if not len(found) % 50_000:
            db.check_interrupts()
    return found


def not_one_dimension(name: str) -> InvalidParameter:
    """The error about an array of several dimensions in the argument `name`."""
    return InvalidParameter(
        f"{name} must be an array of one dimension", hint="ARRAY(SELECT unnest(a)) makes one of all its elements."
    )
