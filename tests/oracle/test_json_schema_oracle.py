"""Constrained JSON against the package jsonschema: every text is valid under its schema, and complete."""

import json
import random

import jsonschema
import numpy as np
import pytest
from pg_gpt2.errors import InvalidParameter
from pg_gpt2.generation.constraints import json_schema
from pg_gpt2.generation.constraints.constraint import Constraint
from pg_gpt2.generation.constraints.vocabulary import Vocabulary
from rfc3339_validator import validate_rfc3339

from tests.engine.schemas import TOKENS, encode, random_schema, random_text, walked

SCHEMAS = 2000
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def require_valid(said: str, schema: dict) -> None:
    """A text is JSON, and valid, formats included."""
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(said))


def test_the_formats_are_checked():
    assert validate_rfc3339("2024-02-29T00:00:00Z")
    assert {"date", "time", "date-time", "uuid", "email"} <= set(CHECKER.checkers)


def test_texts_of_random_schemas_are_valid():
    for seed in range(SCHEMAS):
        rng = random.Random(seed)
        schema = random_schema(rng)
        jsonschema.Draft202012Validator.check_schema(schema)
        try:
            node = json_schema.grammar(schema)
        except InvalidParameter:
            continue  # nothing fits, such as an enum of texts that are numbers
        for _ in range(3):
            require_valid(random_text(node, rng), schema)


@pytest.mark.parametrize("most", [40, 400])
def test_no_text_of_tokens_is_invalid_or_truncated(most):
    """Whatever a model would like to say, also when there are hardly tokens enough."""
    done = 0
    vocabulary = Vocabulary(TOKENS)
    for seed in range(SCHEMAS // 2):
        rng = random.Random(seed)
        schema = random_schema(rng)
        try:
            constraint = Constraint(json_schema.grammar(schema), vocabulary, encode, eos=None)
            walk = constraint.begin(rng.choice((most, constraint.tokens_to_end(constraint.start))))
        except InvalidParameter:
            continue
        require_valid(walked(walk, np.random.default_rng(seed)), schema)
        done += 1
    assert done > SCHEMAS // 2 * 0.9
