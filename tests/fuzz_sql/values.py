"""Odd values of every type that a function of ours takes or a column of ours has, as SQL expressions."""

import random
from collections.abc import Callable, Sequence

INTEGERS = ["0", "-1", "1", "2", "3", "7", "16", "17", "1000", "65536", "100000000", "2147483647", "-2147483648"]
BIGINTS = [*INTEGERS, "9223372036854775807", "-9223372036854775808"]
FLOATS = ["0", "-1", "1", "0.5", "1e-300", "5e-324", "1e308", "-0", "NaN", "Infinity", "-Infinity", "0.999999999"]
TEXTS = r"""
''
'm'
'x'
'new'
'nosuch'
'wte'
'h.0.attn.c_attn.weight'
'train'
'gpt2-small'
'low the cat'
E'\x01\x7f'
E'\U0001f389\u00e9\u0301\u200b'
'%s %d {0} {schema} $1 @extschema@'
'''; DROP TABLE t; --'
E'a\nb'
'"'
E'\\'
repeat('a', 3000)
repeat('low ', 20000)
repeat('z', 2000000)
repeat('/a', 100000)
'SELECT x FROM public.t'
'SELECT x, x FROM public.t'
'SELECT 1; SELECT 2'
'SELECT NULL::text'
'public'
'full'
'off'
'mean'
'{folder}/m.safetensors'
'{folder}/m.npz'
'{folder}/c.npz'
'{folder}'
'{folder}/out'
'{folder}/no/such'
'/proc/self/mem'
'/dev/zero'
'<|endoftext|>'
""".strip().split("\n")
BYTES = r"""
''
'\x00'
'\x0000803f'
'\x0000c07f0000807f'
decode(repeat('00', 64), 'hex')
decode(repeat('ff', 63), 'hex')
decode(repeat('0000803f', 16), 'hex')
decode(repeat('00', 4096), 'hex')
decode(repeat('00', 1000001), 'hex')
decode(repeat('00', 30000000), 'hex')
(SELECT data FROM llm_param WHERE model = 'm' ORDER BY name LIMIT 1)
(SELECT string_agg(c, '') FROM llm_export_safetensors('m') AS c)
'\x1f8b0800'
'\xffffffffffffff7f7b7d'
""".strip().split("\n")
JSON = r"""
'{}'
'[]'
'null'
'7'
'"x"'
'1e400'
'{"eps": "x"}'
'{"axis": 1e300}'
'{"axis": -1}'
'{"n_head": 2}'
'{"ids": [1, null, "x"]}'
'{"shape": [[1], 2]}'
(repeat('[', 900) || repeat(']', 900))
('{"seed": 1' || repeat('0', 5000) || '}')
'{"": {"a": [true, {}]}}'
'[[1, 2, 3, 4, "zz", 5, 6]]'
""".strip().split("\n")
OTHERS = {
    "boolean": ("true", "false"),
    "interval": ("'-1 day'", "'1000 years'", "'0'"),
    "timestamp with time zone": ("'infinity'", "'-infinity'", "now()", "'294276-12-31'"),
    "xid8": ("'0'", "'18446744073709551615'"),
    "regrole": ("'public'", "0"),
    "name": ("'public'", "''"),
}
NUMBERS = {
    "integer": INTEGERS,
    "bigint": BIGINTS,
    "smallint": ["0", "-1", "32767"],
    "numeric": BIGINTS,
    "double precision": FLOATS,
    "real": ["0", "NaN", "1e38", "-Infinity"],
}
PLAIN: dict[str, Sequence[str]] = {
    **{kind: [f"'{number}'" for number in numbers] for kind, numbers in NUMBERS.items()},
    "text": TEXTS,
    "bytea": BYTES,
    "jsonb": JSON,
    **OTHERS,
}


def odd(kind: str, choice: random.Random) -> str:
    """An expression of the type `kind` that a caller should not pass, or may."""
    if choice.random() < 0.08:
        return f"NULL::{kind}"
    if kind.endswith("[]"):
        return _array(kind.removesuffix("[]"), choice)
    values = PLAIN.get(kind)
    return f"NULL::{kind}" if values is None else f"({choice.choice(values)})::{kind}"


def _array(kind: str, choice: random.Random) -> str:
    """NULLs in it, several dimensions, other lower bounds, none or many elements."""

    def elements(count: int) -> str:
        return ", ".join(odd(kind, choice) for _ in range(count))

    small = f"({choice.choice(PLAIN[kind][:8])})::{kind}"
    shapes: list[Callable[[], str]] = [
        lambda: f"'{{}}'::{kind}[]",
        lambda: f"ARRAY[{elements(choice.randrange(1, 5))}]::{kind}[]",
        lambda: f"ARRAY[[{elements(2)}], [{elements(2)}]]::{kind}[]",
        lambda: f"ARRAY[NULL, {elements(1)}]::{kind}[]",
        lambda: (
            f"array_fill({small}, ARRAY[{choice.choice((1, 3, 1000, 100_000))}], ARRAY[{choice.choice((1, 0, -5, 7))}])"
        ),
        lambda: f"array_fill({small}, '{{1,1,1,1,1,1}}')",
        lambda: f"array_fill({small}, '{{4}}')",
        lambda: f"array_fill(NULL::{kind}, '{{3}}')",
    ]
    return choice.choice(shapes)()


def tampered(column: str, kind: str, choice: random.Random) -> str:
    """Another value for a column: an odd one, or what is there and a little more, less or else."""
    column = f'"{column}"'
    changes: list[str] = []
    if kind == "bytea":
        changes = [
            f"substr({column}, 2)",
            f"{column} || '\\x00'",
            f"substr({column}, 5)",
            f"{column} || {column}",
            "''",
        ]
        changes += [f"CASE WHEN {column} <> '' THEN set_byte({column}, 0, get_byte({column}, 0) # 1) ELSE {column} END"]
    elif kind.endswith("[]"):
        changes = [
            f"{column}[2:]",
            f"{column} || {column}",
            f"ARRAY[{column}, {column}]",
            f"array_append({column}, NULL)",
        ]
        changes += [f"array_remove({column}, {column}[1])", f"'[5:5]={{1}}'::{kind}", "'{}'"]
    elif kind == "jsonb":
        changes = [f"jsonb_build_array({column})", f"{column} -> 0", f"{column} - 0", f"{column} || {column}"]
        changes = [f"CASE WHEN jsonb_typeof({column}) = 'array' THEN {change} ELSE '[]' END" for change in changes]
    elif kind in ("integer", "bigint"):
        changes = [f"{column} + 1", f"-{column}", f"{column} - 1"]
    elif kind == "text":
        changes = [f"{column} || 'x'", f"substr({column}, 2)", f"upper({column})"]
    return choice.choice(changes) if changes and choice.random() < 0.5 else odd(kind, choice)
