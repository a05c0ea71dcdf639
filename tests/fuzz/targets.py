"""What is fuzzed: each target takes bytes, hands them to a parser or a function of the engine, and lets typed errors pass.

A target may check what must hold of its result. Containers with checksums are packed around the bytes, which mutations would
otherwise hardly ever get past.
"""

import contextlib
import gzip
import inspect
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pg_gpt2 import bytea_ops, formats
from pg_gpt2.autograd import attributes
from pg_gpt2.core.config import GPT2Config
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.fast import ops
from pg_gpt2.formats import vocab as vocab_files
from pg_gpt2.generation.constraints import json_schema as schemas
from pg_gpt2.generation.constraints import regex
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.constraints.grammar import NOTHING
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from pg_gpt2.generation.decode import check_ids
from pg_gpt2.generation.sampling import Sampling
from pg_gpt2.tensor import from_bytes
from pg_gpt2.tokenizer.bpe import Tokenizer, token_bytes

from tests.engine.arithmetic import gradients_of
from tests.engine.tokenizers import from_strings

CONFIG = GPT2Config(n_layer=1, n_head=2, d_model=4, n_positions=4, vocab=6, eos_token_id=5)


class Target(NamedTuple):
    """`run` raises PgGpt2Error or nothing; `words` are what mutations insert; `seeds` are where they begin."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in CONFIG.param_shapes().items()}


def _import(open_: Callable[[io.BytesIO], formats.Checkpoint], data: bytes) -> None:
    """As the server does: configuration from the file, every tensor checked and read in blocks."""
    for config in (None, CONFIG):
        with open_(io.BytesIO(data)) as checkpoint:
            for _, shape, read in checkpoint.tensors(config or checkpoint.config() or CONFIG):
                for start in range(0, shape[0], 3):
                    rows = read(start, min(start + 3, shape[0]))
                    assert rows.dtype == np.float32
                    assert np.isfinite(rows).all()


# --- checkpoint files -------------------------------------------------------------------------------------------------------


def safetensors(data: bytes) -> None:
    """A whole file."""
    _import(formats.open_safetensors, data)


def safetensors_header(data: bytes) -> None:
    """The JSON alone, with the length in front and as many bytes behind as the last offset says."""
    try:
        ends = [value["data_offsets"][1] for value in json.loads(data).values() if "data_offsets" in value]
        size = max([end for end in ends if type(end) is int and 0 <= end < 4096], default=0)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        size = 16
    safetensors(len(data).to_bytes(8, "little") + data + bytes(size))


def npz(data: bytes) -> None:
    """A whole zip file, or gzip stream."""
    _import(lambda file: formats.open_npz(file, CONFIG), data)


def npz_member(data: bytes) -> None:
    """One .npy array, in a zip file without a fault of its own; its name is that of a tensor."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if data[:1] == b"\x00" else zipfile.ZIP_STORED) as archive:
        for name, values in _weights().items():
            archive.writestr(f"{name}.npy", data[1:] if name == "wpe" else _npy(values))
    npz(file.getvalue())


def gzip_stream(data: bytes) -> None:
    """What the older container holds once it is inflated."""
    npz(gzip.compress(data, 1, mtime=0))


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version=(1, 0))
    return file.getvalue()


def _packed(write: Callable[..., Any], tensors: dict[str, np.ndarray]) -> bytes:
    shapes = {name: values.shape for name, values in tensors.items()}
    metadata = {"n_head": "2", "eos_token_id": "5", "stop_token_ids": "5 1"}
    if write is formats.write_safetensors:
        return b"".join(write(shapes, lambda name: [tensors[name]], metadata))
    file = io.BytesIO()
    write(file, shapes, lambda name: [tensors[name]], metadata)
    return file.getvalue()


def _deflated(tensors: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **tensors)
    return file.getvalue()


def _old_container(tensors: dict[str, np.ndarray]) -> bytes:
    return b"".join(struct.pack("<H", len(name)) + name.encode() + _npy(v) for name, v in tensors.items())


def _header(tensors: dict[str, np.ndarray]) -> bytes:
    whole = _packed(formats.write_safetensors, tensors)
    return whole[8 : 8 + int.from_bytes(whole[:8], "little")].rstrip()


# --- vocabularies and text --------------------------------------------------------------------------------------------------


def vocabulary(data: bytes) -> None:
    """vocab.json, a zero byte, merges.txt; what loads must encode, and decode to the same."""
    first, _, second = data.partition(b"\0")
    tokenizer = from_strings(vocab_files.parse_vocab(first), vocab_files.parse_merges(second))
    for text in ("low lower", "é🎉"):
        try:
            ids = tokenizer.encode(text)
        except PgGpt2Error:
            continue
        assert len(tokenizer.decode_bytes(ids)) >= 1


def _tokenizer() -> Tokenizer:
    merges = [("l", "o"), ("lo", "w"), ("e", "r"), ("Ġ", "low"), ("Ã", "©"), ("a", "a"), ("aa", "aa"), ("1", "2")]
    tokens = {i: bytes([i]) for i in range(256)}
    texts = [left + right for left, right in merges]
    return Tokenizer.of(
        tokens | {256 + i: token_bytes(t) for i, t in enumerate(texts)} | {300: b"<|endoftext|>"}, merges
    )


TOKENIZER = _tokenizer()


def text(data: bytes) -> None:
    """Any text comes back, and the trace of its merges ends in the same tokens."""
    given = data.decode("utf-8", "replace")
    ids = TOKENIZER.encode(given)
    assert TOKENIZER.decode(ids) == given
    TOKENIZER.encode(given, special=True)
    if len(given) < 200 and (steps := list(TOKENIZER.trace(given))):
        assert all(step.pieces for step in steps)


def token_ids(data: bytes) -> None:
    """Arrays of ids as SQL passes them: integers of 32 bits and nulls."""
    ids = [None if i == 0x7EADBEEF else i for (i,) in struct.iter_unpack("<i", data[: len(data) // 4 * 4])]
    for function in (TOKENIZER.decode, TOKENIZER.decode_bytes, lambda ids: check_ids(ids, CONFIG, "m")):
        with contextlib.suppress(PgGpt2Error):
            function(ids)  # type: ignore[operator]


def json_schema(data: bytes) -> None:
    """A schema; the shortest text that fits it is JSON."""
    node = schemas.parse(data.decode("utf-8", "replace"))
    found = bytearray()
    if node.shortest > 2000:
        return
    while not node.nullable:
        low, _, node = min(node.firsts(), key=lambda first: first[2].shortest)
        found.append(low)
    json.loads(found.decode())


ENDS = 300
VOCABULARY = Vocabulary({i: data for i, data in TOKENIZER.tokens.items() if i != ENDS})


def pattern(data: bytes) -> None:
    """A regular expression, and the number of tokens: a text drawn within it matches, where Python reads the pattern."""
    count, given = (data[0] if data else 0), data[1:].decode("utf-8", "replace")
    if (node := regex.parse(given)) is NOTHING:
        return
    made = Constraint(node, VOCABULARY, TOKENIZER.encode, ENDS)
    walk, tokens, rng = made.begin(count), [], np.random.default_rng(count)
    while walk.left and not walk.over and len(tokens) < 12:
        tokens.append(int(rng.choice(walk.allowed)))
        walk.take(tokens[-1])
    if (walk.over or tokens[-1:] == [ENDS] or not walk.left) and "[:" not in given:  # Python has no [[:alpha:]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = TOKENIZER.decode_bytes([i for i in tokens if i != ENDS]).decode()
            assert re.fullmatch(given, text), (given, text)


# --- ops and kernels --------------------------------------------------------------------------------------------------------

SIZES = (1, 1, 2, 3, 4, 5, 8, 16)
NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12, -1, 2**31 - 1, -(2**31), 2**62, 16, 48, 64, 100)
FLOATS = (0.0, 0.1, 0.5, 1.0, -1.0, 1e-5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 0.999)
VALUES = (
    *(0, 1, 2, 3, 4, -1, -2, 0.5, 1e-5, 2**31, 2**62, -(2**63), 1e308, None, True, "x", {}),
    *([], [0], [1, 0], [2, 1, 0], [1, 2, 3, 0], [0, 1], [[0, 1], [1, 0]], [4], [2, 2], [-1], [2**62, 4], [[0]], [[]]),
    *(10**400, -(10**4000), [1] * 70, json.loads("[" * 17 + "0" + "]" * 17), json.loads("[" * 300 + "]" * 300)),
)
OPS = sorted(ops.registry)
KERNELS = sorted(
    name
    for name, function in vars(bytea_ops).items()
    if inspect.isfunction(function)
    and function.__module__ == bytea_ops.__name__
    and not name.startswith(("_", "require"))
)


class _Bytes:
    """Choices taken from bytes; zeros when they end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def next(self) -> int:
        """The next byte."""
        self.place += 1
        return self.data[self.place - 1] if self.place <= len(self.data) else 0

    def rest(self) -> bytes:
        """What is left."""
        return self.data[self.place :]


def op(data: bytes) -> None:
    """An op on arrays of any shapes with any jsonb as extra."""
    choices = _Bytes(data)
    name, shapes = _application(choices)
    extra = choices.rest().decode("utf-8", "replace")
    try:
        json.loads(extra, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return  # the server's jsonb is always JSON
    _apply(name, shapes, extra)


def op_attributes(data: bytes) -> None:
    """An op with attributes of the right names, and values that are seldom right."""
    choices = _Bytes(data)
    name, shapes = _application(choices)
    parameters = inspect.signature(ops.lookup(name).forward).parameters.values()
    takes = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    extra = {name: VALUES[choice - 1] for name in takes if (choice := choices.next() % (len(VALUES) + 1))}
    _apply(name, shapes, json.dumps(extra))


def _application(choices: _Bytes) -> tuple[str, list[list[int]]]:
    name = OPS[choices.next() % len(OPS)]
    return name, [[SIZES[choices.next() % 8] for _ in range(choices.next() % 5)] for _ in range(choices.next() % 5)]


def _apply(name: str, shapes: list[list[int]], extra: str) -> None:
    """Forward and backward, as the tape does it."""
    attrs = attributes.parse(name, extra)
    if name == "dropout":
        attrs.setdefault("seed", 1)
    arrays = [np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape) for shape in shapes]
    found = ops.lookup(name)
    with np.errstate(all="ignore"):
        y = found(*arrays, **attrs)
        assert y.dtype == np.float32
        for array, gradient in zip(arrays, gradients_of(found, np.ones_like(y), *arrays, **attrs)):
            assert gradient is None or gradient.shape == array.shape


def _no_json(constant: str) -> None:
    raise ValueError(constant)


def kernel(data: bytes) -> None:
    """A kernel on bytes of any length and numbers from hostile ones."""
    choices = _Bytes(data)
    function = vars(bytea_ops)[KERNELS[choices.next() % len(KERNELS)]]
    given: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = str(parameter.annotation)
        choice = choices.next()
        if "bytes" in kind:
            given.append(np.linspace(-2, 2, choice % 65, dtype="<f4").tobytes() + b"\0" * (choice // 250))
        elif "float" in kind and "Sequence" not in kind:
            given.append(FLOATS[choice % len(FLOATS)])
        elif "Sampling" in kind:
            given.append(Sampling(FLOATS[choice % 12], NUMBERS[choices.next() % 16], FLOATS[choices.next() % 12]))
        elif "bool" in kind:
            given.append(bool(choice % 2))
        elif "int" in kind:
            given.append(NUMBERS[choice % len(NUMBERS)])
        else:
            given.append([FLOATS[choices.next() % len(FLOATS)] for _ in range(choice % 8)])
    with np.errstate(all="ignore"):
        function(*given)


def shape(data: bytes) -> None:
    """A tensor of the caller's shape: overflowing, negative, empty."""
    choices = _Bytes(data)
    dims = [NUMBERS[choices.next() % len(NUMBERS)] for _ in range(choices.next() % 7)]
    values = from_bytes(choices.rest(), dims)
    assert list(values.shape) == dims


JSON = (
    b'"',
    b"{}",
    b"[]",
    b"[",
    b"{",
    b":",
    b",",
    b"null",
    b"true",
    b"-1",
    b"1e400",
    b"NaN",
    b"9223372036854775808",
    b"\\ud800",
)
NAMES = tuple(name.encode() for name in ("wte", "wpe", "h.0.attn.bias", "lm_head.weight", "transformer.", "_orig_mod."))
NPY = (
    b"\x93NUMPY\x01\x00",
    b"'descr'",
    b"'<f8'",
    b"'|O'",
    b"'>f2'",
    b"True",
    b"(4, 4)",
    b"(1 << 62,)",
    b"'i8'",
    b"lambda: 0",
)
SCHEMA_WORDS = tuple(
    f'"{word}"'.encode()
    for word in (*schemas.SUPPORTED, *schemas.KEYWORDS, "$defs", "oneOf", "#/$defs/c", "#", "^a?$", "(b*)*")
)
EXTRAS = tuple(
    f'"{name}": '.encode()
    for name in ("eps", "p", "axis", "n_head", "chunk", "ids", "target", "start", "stop", "shape")
)
SMALL = {name: values for name, values in _weights().items() if not name.startswith("h.")}

TARGETS = {
    "safetensors": Target(safetensors, [_packed(formats.write_safetensors, _weights())], (*JSON, *NAMES)),
    "safetensors_header": Target(
        safetensors_header,
        [_header(_weights()), _header(SMALL), b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'],
        (*JSON, *NAMES, b'"F16"', b'"shape"', b'"dtype"', b'"data_offsets"', b'"__metadata__"'),
    ),
    "npz": Target(
        npz,
        [_packed(formats.write_npz, _weights()), _deflated(SMALL), gzip.compress(_old_container(SMALL), mtime=0)],
        (*NAMES, b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b".npy"),
    ),
    "npz_member": Target(
        npz_member, [b"\x01" + _npy(np.ones((4, 4), "<f4")), b"\0" + _npy(np.asfortranarray(np.ones((4, 4))))], NPY
    ),
    "gzip_stream": Target(gzip_stream, [_old_container(_weights()), _old_container(SMALL)], (*NAMES, *NPY)),
    "vocabulary": Target(
        vocabulary,
        ['{"l":0,"o":1,"w":2,"lo":3,"Ġ":4,"e":5,"r":6,"low":7}\0#version: 0.2\nl o\nlo w\n'.encode(), b'{"a":1}\0a a'],
        (*JSON, b"#version", b"\n", b" ", b"\r\n", "Ġ".encode(), b"\xef\xbb\xbf"),
    ),
    "text": Target(
        text,
        ["low lower  naïve 🎉 don't 12\n\n  <|endoftext|>".encode(), b"a" * 60],
        (b"<|endoftext|>", b"'ll", "\u3000".encode()),
    ),
    "json_schema": Target(
        json_schema,
        [
            b'{"type": "object", "properties": {"a": {"type": "string", "pattern": "^a|[b-d]{2,9}$", "maxLength": 9},'
            b' "b": {"$ref": "#/$defs/c"}}, "required": ["b"], "$defs": {"c": {"enum": [1, "x", null, {"k": []}]}}}',
            b'{"anyOf": [{"type": ["integer", "null"], "minimum": -12.5, "exclusiveMaximum": 1e9}, {"type": "array",'
            b' "items": {"format": "date-time"}, "minItems": 1, "maxItems": 2}]}',
        ],
        (*JSON, *SCHEMA_WORDS),
    ),
    "pattern": Target(
        pattern,
        [b"\x14\\d{4}-[01]\\d", b"\x05(low|lower)*?[^a-c\\s]", b"\x09^(?:\\u00e9|\\x41)+$", b"\x03[[:alpha:]_]{2,}|.?"],
        tuple(
            rb"( ) (?: | [ ] [^ - \ ^ $ . * + ? {2} {0,} {,3} {1,2147483647} \d \W \s \1 \b \A \Z \x4 \u00e9 [:digit:]".split()
        ),
    ),
    "token_ids": Target(
        token_ids, [struct.pack("<6i", 1, 2, 300, -1, 0x7EADBEEF, 2**31 - 1), b""], (b"\xff\xff\xff\xff",)
    ),
    "op": Target(
        op,
        [
            *(bytes([i, 2, 2, 1, 2, 2, 2, 2]) + b"{}" for i in range(len(OPS))),
            bytes([OPS.index("attention"), 1, 2, 2, 2]) + b'{"n_head": 2}',
            bytes([OPS.index("cross_entropy"), 1, 2, 2, 4]) + b'{"target": [1, 2]}',
            bytes([OPS.index("embedding"), 1, 2, 4, 2]) + b'{"ids": [1, 2]}',
            bytes([OPS.index("slice"), 1, 2, 4, 4]) + b'{"axis": 0, "start": 0, "stop": 1}',
        ],
        (*JSON, *EXTRAS),
    ),
    "op_attributes": Target(
        op_attributes, [bytes([i, n, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]) for i in range(len(OPS)) for n in (1, 2, 3)]
    ),
    "kernel": Target(kernel, [bytes([i, 12, 12, 4, 4, 4, 2, 2]) for i in range(len(KERNELS))]),
    "shape": Target(shape, [bytes([2, 1, 2]) + bytes(8), bytes([1, 9])]),
}
