"""JSON schemas as grammars: what fits is valid and what is valid, in the one form, fits; everything else is refused by name.

tests/oracle/test_json_schema_oracle.py says the same with the package jsonschema; here is a plain validator instead of it.
"""

import json
import random
import re
import time
from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import pytest
from pg_gpt2.errors import PgGpt2Error
from pg_gpt2.generation.constraints import json_schema
from pg_gpt2.generation.constraints.automaton import MOST_NESTED, Automaton
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from pg_gpt2.limits import MOST_SCHEMA_LEVELS
from pg_gpt2.options import read_object

from tests.engine.schemas import (
    TEXTS,
    TOKENS,
    accepts,
    encode,
    is_valid,
    random_schema,
    random_text,
    read,
    walked,
)


def grammar(schema):
    """The grammar of a schema that is given as a value or as text."""
    return json_schema.grammar(read_object(schema, "{}") if isinstance(schema, str) else schema)


def fits(schema, *said):
    """Which of some texts fit."""
    node = grammar(schema)
    return [one for one in said if accepts(node, one)]


def refused(schema):
    """(sqlstate, message, hint) of what is refused."""
    with pytest.raises(PgGpt2Error) as caught:
        grammar(schema)
    return caught.value.sqlstate, caught.value.message, caught.value.hint


# ---- random


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_every_text_of_a_random_schema_is_valid(start):
    for seed in range(start, start + 100):
        rng = random.Random(seed)
        schema = random_schema(rng)
        try:
            node = grammar(schema)
        except PgGpt2Error as error:
            if error.message != "no value fits the schema":
                raise
            continue
        for _ in range(3):
            said = random_text(node, rng)
            assert is_valid(read(said), schema, schema), (schema, said)


def test_no_text_of_tokens_is_invalid_or_truncated():
    vocabulary = Vocabulary(TOKENS)
    for seed in range(60):
        rng = random.Random(seed)
        schema = random_schema(rng)
        try:
            constraint = Constraint(grammar(schema), vocabulary, encode, eos=None)
        except PgGpt2Error:
            continue
        walk = constraint.begin(max(constraint.tokens_to_end(constraint.start), rng.choice((0, 30))))
        said = walked(walk, np.random.default_rng(seed))
        assert is_valid(read(said), schema, schema), (schema, said)


# ---- objects and arrays


def test_properties_have_one_order_and_commas_between_them():
    schema = {"properties": {name: {"const": 1} for name in "abcd"}, "required": ["d", "b"]}
    texts = [
        '{"d": 1, "b": 1}',
        '{"d": 1, "b": 1, "a": 1}',
        '{"d": 1, "b": 1, "c": 1}',
        '{"d": 1, "b": 1, "a": 1, "c": 1}',
    ]
    wrong = [
        '{"b": 1, "d": 1}',
        '{"d": 1}',
        "{}",
        '{"d": 1, "b": 1, "c": 1, "a": 1}',
        '{"d": 1, "b": 1,}',
        '{"d":1,"b":1}',
    ]
    assert fits(schema, *texts, *wrong) == texts


def test_any_of_the_properties_may_be_there_where_none_is_required():
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in "abc"}}
    some = [[name for bit, name in enumerate("abc") if n >> bit & 1] for n in range(8)]
    texts = ["{" + ", ".join(f'"{name}": null' for name in names) + "}" for names in some]
    assert fits(schema, *texts) == texts
    assert fits(schema, "{, }", '{, "a": null}', '{"a": null, }', '{"b": null, "a": null}') == []


def test_a_property_that_nothing_fits_is_left_out():
    assert fits({"properties": {"a": False, "b": {"const": 1}}}, '{"b": 1}', "{}") == ['{"b": 1}', "{}"]
    assert refused({"properties": {"a": False}, "required": ["a"]})[1] == "no value fits the schema"


def test_arrays_have_as_many_items_as_they_may():
    schema = {"type": "array", "items": {"enum": [1, "x"]}, "minItems": 1, "maxItems": 3}
    texts = ["[1]", '["x", 1]', "[1, 1, 1]"]
    assert fits(schema, *texts, "[]", "[1, 1, 1, 1]", "[1,1]", "[1, ]") == texts
    assert fits({"type": "array", "maxItems": 0}, "[]", "[1]") == ["[]"]
    assert fits({"items": {"const": 1}}, "[]", "[1, 1, 1, 1, 1]") == ["[]", "[1, 1, 1, 1, 1]"]


# ---- strings


def test_a_string_has_the_spelling_of_json_dumps():
    node = grammar({"type": "string"})
    for text in (*TEXTS, "".join(map(chr, range(1, 0x300))), "\ud7ff\ue000\U0010ffff"):
        assert accepts(node, json.dumps(text, ensure_ascii=False)), text
    for said in ('"', '"\t"', '"\\u0041"', '"\\/"', '"\\u0000"', '"\x00"', '"a"b"', '"\\ud800"'):
        assert not accepts(node, said), said


def test_lengths_count_characters_and_not_escapes_or_bytes():
    node = grammar({"type": "string", "minLength": 2, "maxLength": 3})
    for text in ("é🙂", '"\\"', "\n\x01\t", "abc"):
        assert accepts(node, json.dumps(text, ensure_ascii=False)), text
    for text in ("", "🙂", "\n", "abcd", "éééé"):
        assert not accepts(node, json.dumps(text, ensure_ascii=False)), text


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[a-z]+$", ["a", "xyz"], ["", "A", "ab1", "a\n"]),
        ("b", ["b", "abc", "\nb\n"], ["", "ac"]),
        ("^a", ["a", "ab"], ["ba"]),
        ("a$", ["a", "ba"], ["ab"]),
        ("^a$|b", ["a", "abc"], ["ac", ""]),
        ('^["\\\\]$', ['"', "\\"], ["x"]),
        (r"^\^\$$", ["^$"], [""]),
        ("^[|$^(]$", ["|", "$", "^", "("], ["x"]),
        ("^(a|b)$", ["a", "b"], ["(a|b)"]),
        ("", ["", "x"], []),
    ],
)
def test_a_pattern_is_found_anywhere_unless_it_says_where(pattern, good, bad):
    node = grammar({"type": "string", "pattern": pattern})
    for text in good + bad:
        assert bool(re.search(pattern.replace("$", r"\Z") if pattern.endswith("+$") else pattern, text)) == (
            text in good
        )
        assert accepts(node, json.dumps(text)) == (text in good), text


def test_a_pattern_and_lengths_hold_together():
    rng = random.Random(1)
    for pattern in (
        "^[a-z]+$",
        "^a*b*c*$",
        "^(ab|c)+$",
        "^(a|bcd|bcda)$",
        "b",
        "^x?(y+z)*$",
        "^(a?b?)*$",
        "^(a{1,3}b){1,}$",
    ):
        for least, most in ((0, 3), (2, 5), (4, 4), (1, None)):
            schema = {"type": "string", "pattern": pattern, "minLength": least}
            node = grammar(schema | ({"maxLength": most} if most else {}))
            for _ in range(40):
                text = "".join(rng.choice("abcxyz") for _ in range(rng.randint(0, 7)))
                wanted = bool(re.search(pattern, text)) and least <= len(text) <= (most or 9)
                assert accepts(node, json.dumps(text)) == wanted, (pattern, least, most, text)


def test_dates_are_those_of_the_calendar():
    node = grammar({"type": "string", "format": "date"})
    day = date(1, 1, 1)
    for _ in range(3000):
        assert accepts(node, f'"{day}"'), day
        day += timedelta(days=1217)
        if day.year > 9900:
            break
    for year in (4, 1600, 1900, 2000, 2023, 2024, 2100, 2400, 9999):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        assert accepts(node, f'"{year:04}-02-29"') == leap, year
    for wrong in ("0000-01-01", "2024-02-30", "2023-04-31", "2023-13-01", "2023-00-10", "2023-1-1", "2023-01-00"):
        assert not accepts(node, f'"{wrong}"'), wrong


def test_times_have_neither_leap_seconds_nor_the_hour_24():
    node = grammar({"type": "string", "format": "date-time"})
    good = ["2024-02-29T23:59:59Z", "2023-01-01T00:00:00.123456+05:30", "2023-01-01T00:00:00-14:00"]
    wrong = [
        "2023-02-29T00:00:00Z",
        "2023-01-01T24:00:00Z",
        "2023-01-01T23:59:60Z",
        "2023-01-01T00:00:00",
        "2023-01-01",
    ]
    wrong += ["2023-01-01T00:00:00+14:30", "2023-01-01 00:00:00Z", "2023-01-01T00:00:00.1234567Z"]
    assert [one for one in good + wrong if accepts(node, f'"{one}"')] == good


# ---- numbers


def test_ranges_of_numbers_are_exact():
    rng = random.Random(2)
    for _ in range(300):
        whole = rng.random() < 0.5
        low, high = (Decimal(rng.randint(-3000, 3000)) / 10 ** rng.choice((0, 1, 2)) for _ in range(2))
        keys = rng.choice(("minimum", "exclusiveMinimum")), rng.choice(("maximum", "exclusiveMaximum"))
        node_of = {"type": "integer" if whole else "number", keys[0]: float(low), keys[1]: float(high)}
        try:
            node = grammar(node_of)
        except PgGpt2Error:
            node = None
        for _ in range(30):
            near = rng.choice((low, high)) + Decimal(rng.randint(-15, 15)) / 10 ** rng.choice((0, 1, 2, 3))
            said = format(near.to_integral_value() if whole else near, "f")
            value = Decimal(said)
            wanted = (
                (low < value or (low == value and keys[0] == "minimum"))
                and (value < high or (value == high and keys[1] == "maximum"))
                and (not said.startswith("-") or value != 0)
            )
            assert (node is not None and accepts(node, said)) == wanted, (node_of, said)


def test_a_number_is_written_plainly():
    node = grammar({"type": "number"})
    good = ["0", "-1", "0.5", "-0.25", "123456789012345", "1.50", "0.000000001"]
    wrong = ["-0", "-0.0", "01", "1.", ".5", "1e5", "+1", "1234567890123456", "0.0000000001", "", "-", "NaN"]
    assert [one for one in good + wrong if accepts(node, one)] == good
    assert fits({"type": "integer"}, "0", "-7", "1.0", "-0", "00") == ["0", "-7"]
    assert fits({"type": "integer", "minimum": 1e18}, "1000000000000000000", "999999999999999999") == [
        "1000000000000000000"
    ]


@pytest.mark.parametrize(
    ("low", "high", "between"),
    [
        ("0", "1e-12", "0.0000000000005"),
        ("-1e-9", "0", "-0.0000000001"),
        ("100000000000000000000", "100000000000000000001", "100000000000000000000.9"),
    ],
)
def test_open_bounds_that_are_neighbours_have_numbers_between_them(low, high, between):
    schema = f'{{"type": "number", "exclusiveMinimum": {low}, "exclusiveMaximum": {high}}}'
    assert fits(schema, between, *(format(Decimal(end), "f") for end in (low, high))) == [between]


def test_bounds_keep_all_their_digits():
    schema = '{"type": "number", "maximum": 999999999999999999.99, "minimum": 999999999999999999.98}'
    numbers = [f"999999999999999999.{end}" for end in ("97", "98", "99")]
    assert fits(schema, *numbers, "1000000000000000000") == numbers[1:]


# ---- what is listed, unions, references


def test_values_that_are_listed_stand_as_they_were_written():
    schema = '{"enum": [1.50, "a\\"b", null, {"k": [1, true, {}]}, [], "é", 1e2]}'
    texts = ["1.50", '"a\\"b"', "null", '{"k": [1, true, {}]}', "[]", '"é"', "1e2"]
    assert fits(schema, *texts, "1.5", "100", '"\\u00e9"') == texts
    assert fits({"type": ["string", "null"], "enum": ["a", 1, None]}, '"a"', "1", "null") == ['"a"', "null"]
    assert fits({"enum": [1, 2], "const": 2}, "1", "2") == ["2"]
    assert fits({"type": "integer", "enum": [1, 1.0, 1.5, True]}, "1", "1.0", "1.5", "true") == ["1", "1.0"]


def test_references_stay_within_the_schema():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.org/x",
        "$defs": {"a/b": {"type": "null"}, "t~u": {"$ref": "#/$defs/a~1b"}},
        "definitions": {"é": {"$ref": "#/$defs/t~0u"}},
        "anyOf": [{"$ref": "#/definitions/%C3%A9"}, {"$ref": "#/anyOf/2"}, {"const": 3}],
    }
    assert fits(schema, "null", "3", "4") == ["null", "3"]
    shared = {"$defs": {"d0": {"enum": [0, 1]}}}
    for n in range(1, 12):  # 2^12 copies if they were written out
        two = {"anyOf": [{"$ref": f"#/$defs/d{n - 1}"}, {"items": {"$ref": f"#/$defs/d{n - 1}"}}]}
        shared["$defs"][f"d{n}"] = two
    assert fits(shared | {"$ref": "#/$defs/d11"}, "0", "[[0, 1]]", "2") == ["0", "[[0, 1]]"]


# ---- refused


@pytest.mark.parametrize(
    ("schema", "state", "says"),
    [
        ({"type": "number", "multipleOf": 3}, "0A000", 'keyword "multipleOf"'),
        ({"oneOf": [{"type": "null"}]}, "0A000", 'keyword "oneOf"'),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "0A000", "#/properties/a"),
        ({"type": "string", "format": "hostname"}, "0A000", 'format "hostname"'),
        (
            {"type": "string", "format": "date", "pattern": "1"},
            "0A000",
            '"format" together with "pattern" is not supported',
        ),
        ({"type": "string", "pattern": "a$b"}, "0A000", "$ inside of the pattern"),
        ({"type": "string", "pattern": r"\bx"}, "0A000", r"\b inside of the pattern"),
        ({"type": "string", "pattern": "(?=x)"}, "2201B", "look-ahead"),
        ({"type": "string", "pattern": "("}, "2201B", "not closed"),
        ({"type": "string", "pattern": "^(a+b+)+$", "maxLength": 300}, "0A000", "vary in length"),
        ({"type": "object", "additionalProperties": True}, "0A000", "additionalProperties"),
        ({"type": "array", "items": [{"type": "null"}]}, "0A000", "a list of items"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "0A000", '"type" together with anyOf'),
        ({"$ref": "#/$defs/a", "minLength": 1}, "0A000", '"minLength" together with $ref'),
        ({"enum": ["a"], "maxLength": 1}, "0A000", 'JSON schema at #: "maxLength" together with enum or const is not'),
        ({"$ref": "https://example.org"}, "0A000", "$ref"),
        ({"$ref": "#"}, "0A000", '$ref "#", which leads to itself, is not'),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "0A000", "to itself"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "0A000", "to itself"),
        ({"items": {"$id": "x", "type": "null"}}, "0A000", '"$id" below the top'),
        ({"$ref": "#/$defs/a"}, "22023", "leads nowhere"),
        ({}, "22023", "of which type"),
        ({"type": "array"}, "22023", "needs items"),
        ({"items": True}, "22023", "a schema must be an object, not true"),
        ({"type": "text"}, "22023", 'no value "text"'),
        ({"type": []}, "22023", "type must be a list of one or more, not []"),
        ({"enum": []}, "22023", "enum must be a list of one or more, not []"),
        ({"anyOf": {}}, "22023", "anyOf must be a list of one or more, not {}"),
        ({"required": 1, "properties": {}}, "22023", "required must be a list, not 1"),
        ({"required": ["a"], "properties": {}}, "22023", 'required lists "a", which is not in properties'),
        ({"properties": []}, "22023", "properties must be an object"),
        ({"minLength": -1}, "22023", "minLength"),
        ({"maxItems": 1.5, "items": {"type": "null"}}, "22023", "maxItems"),
        ({"pattern": 3}, "22023", "pattern must be a text"),
        ({"minimum": "1"}, "22023", "minimum must be a number"),
        ({"type": "integer", "exclusiveMinimum": True}, "22023", "exclusiveMinimum must be a number"),
        ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "22023", "no value fits"),
        ({"type": "string", "enum": [1]}, "22023", "no value fits"),
        ({"const": "a\0"}, "22023", "U+0000"),
        ({"const": "\ud800"}, "22023", "surrogate"),
        ('{"type": "number", "maximum": 1e200}', "54000", "digits"),
        ({"type": "number", "maximum": float("inf")}, "22023", "finite"),
    ],
)
def test_what_is_not_held_is_refused_by_name(schema, state, says):
    found, message, hint = refused(schema)
    assert (found, says in message, bool(hint)) == (state, True, True), message


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"pattern": "a("}, "the regular expression cannot be used, character 2: a group is not closed"),
        ({"pattern": "^a("}, "the regular expression cannot be used, character 3: a group is not closed"),
        (
            {"pattern": "^ab$|^[c-a]"},
            "the regular expression cannot be used, character 8: this is no range of characters",
        ),
        ({"pattern": "a$b"}, "$ inside of the pattern a$b is not supported"),
        ({"minimum": 10**60}, "a bound of a number has more than 50 digits"),
    ],
)
def test_errors_of_patterns_and_numbers_name_the_place_in_the_schema(schema, says):
    text = json.dumps({"properties": {"deep": {"properties": {"a": schema}}}})
    message, hint = refused(text)[1:]
    assert message == f"JSON schema at #/properties/deep/properties/a: {says}"
    assert "the whole text" not in hint


def test_a_hint_is_about_the_keyword_that_is_wrong():
    for keyword in ("type", "enum", "anyOf"):
        assert f'"{keyword}": [' in refused({keyword: []})[2]
    assert '"required": [' in refused({"required": 1, "properties": {}})[2]


def deep(levels, kind):
    """A schema of so many schemas, one within the other."""
    schema = {"type": "null"}
    for _ in range(levels):
        schema = {"object": {"properties": {"a": schema}}, "array": {"items": schema}, "union": {"anyOf": [schema]}}[
            kind
        ]
    return schema


@pytest.mark.parametrize("kind", ["object", "array", "union"])
def test_deep_schemas_are_refused_in_no_time(kind):
    began = time.process_time()
    assert refused(deep(100_000, kind))[0] == "54000"
    assert refused({"const": json.loads("[" * 900 + "]" * 900)})[0] == "54000"
    assert Automaton(grammar(deep(MOST_SCHEMA_LEVELS, kind))).node.depth <= MOST_NESTED
    assert time.process_time() - began < 1


def test_the_deepest_schema_with_the_longest_number_is_walked():
    schema = {"type": "number", "minimum": 1, "maximum": 2}
    for _ in range(MOST_SCHEMA_LEVELS):
        schema = {"type": ["object", "null"], "properties": {"a": schema, "b": {"type": "null"}}}
    walk = Constraint(grammar(schema), Vocabulary(TOKENS), encode, eos=None).begin(1000)
    assert is_valid(read(walked(walk, np.random.default_rng(1))), schema, schema)


def test_huge_schemas_are_read_in_bounded_time():
    began = time.process_time()
    grammar({"properties": {f"p{n}": {"type": "string", "maxLength": 2**31} for n in range(2000)}})
    grammar({"enum": [f"value {n}" for n in range(50_000)]})
    grammar({"type": "string", "minLength": 2**31, "maxLength": 2**62})
    assert refused({"anyOf": [{"type": "null"}] * 20_000})[0] == "54000"
    assert refused({"pattern": "^" + "a?" * 20_000 + "$", "maxLength": 5})[0] == "0A000"
    assert time.process_time() - began < 5


def test_a_reference_used_often_is_read_once():
    found = {"$defs": {"d0": {"type": "null"}}, "$ref": "#/$defs/d15"}
    for n in range(1, 16):
        two = {f"{name}": {"$ref": f"#/$defs/d{n - 1}"} for name in "ab"}
        found["$defs"][f"d{n}"] = {"properties": two, "required": ["a", "b"]}
    began = time.process_time()
    node = grammar(found)
    assert node.shortest > 2**15
    assert time.process_time() - began < 1
