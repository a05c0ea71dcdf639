"""Options: what JSON may say, what is refused and how, and that each declaration has its processor and the reverse."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pg_gpt2.errors import InvalidParameter, NullNotAllowed
from pg_gpt2.generation import processors
from pg_gpt2.generation.constraints import compiled
from pg_gpt2.generation.options import (
    CONSTRAINTS,
    BeamSearch,
    Generation,
    SamplingOptions,
    TextGeneration,
    all_options,
    gather,
)
from pg_gpt2.generation.sampling import Sampling
from pg_gpt2.limits import MOST_OPTION_CHARACTERS
from pg_gpt2.options import Option, manual
from pg_gpt2.training.options import all_options as training_options

GIVEN = {
    "max_tokens": 64,
    "temperature": 1.0,
    "topk": 50,
    "topp": 0.95,
    "model_name": None,
    "eos_token": None,
    "seed": None,
    "stop": None,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "echo": True,
}


def asked(options: object, **given: object) -> tuple[TextGeneration, Sampling]:
    text = options if isinstance(options, str | None) else json.dumps(options)
    call, sampling = gather({**GIVEN, **given, "options": text}, TextGeneration, Sampling)
    return call, sampling


def test_every_sampling_option_is_a_processor_or_a_constraint_or_the_temperature() -> None:
    processed = {*processors.ADJUSTMENTS, *processors.CUTS}
    assert set(SamplingOptions.options()) == {*processed, *CONSTRAINTS, "temperature"}
    assert set(CONSTRAINTS) == set(compiled.GRAMMARS)


def test_a_call_has_one_constraint_at_most() -> None:
    assert asked({"choices": ["a", "b"]})[1].constraint == ("choices", ("a", "b"))
    assert asked({"regex": "", "choices": None})[1].constraint == ("regex", "")
    assert asked({})[1].constraint is None
    with pytest.raises(InvalidParameter, match=r"^choices and regex are constraints, and a call has one at most$"):
        asked({"regex": "a", "choices": ["a"]})
    assert asked({"choices": ["a"]})[1].in_ids(9, lambda text: [99]).choices == ("a",)


def test_defaults_are_good_values_and_none_adds_a_processor_to_those_of_the_parameters() -> None:
    for kind in (Sampling, TextGeneration, BeamSearch):
        for name, one in kind.options().items():
            assert one.check(one.default, name) == one.default
    assert Sampling().adjustments == []
    assert [name for name, _, _ in Sampling().cuts] == ["topk", "topp"]


def test_the_manual_has_every_option_once_by_its_own_name_elsewhere() -> None:
    rows = list(manual(all_options()))
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names) == len(list(all_options()))
    assert {"top_k", "top_p", "max_new_tokens", "eos_token_id", "stop_strings", "typical_p"} <= set(names)
    assert all(word for row in rows for word in (row[1], row[3], row[4]))
    defaults = {name: default for name, _, default, _, _ in rows}
    assert (defaults["top_k"], defaults["seed"], defaults["echo"], defaults["bad_words"]) == ("50", None, "true", None)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("top_k", 3, "topk"),
        ("topk", 3, "topk"),
        ("top_p", 0.5, "topp"),
        ("temperature", 0, "temperature"),
        ("typical_p", 0.5, "typical_p"),
        ("min_new_tokens", 2, "min_new_tokens"),
    ],
)
def test_a_key_sets_an_option_of_sampling(key: str, value: float, name: str) -> None:
    assert getattr(asked({key: value})[1], name) == value


def test_keys_set_parameters() -> None:
    call, _ = asked(
        {
            "max_new_tokens": 7,
            "eos_token_id": -1,
            "seed": 2**63 - 1,
            "stop_strings": ["."],
            "echo": False,
            "model_name": "m",
        }
    )
    assert call == TextGeneration(7, -1, "m", 2**63 - 1, (".",), False)


def test_lists_and_objects_become_what_processors_take() -> None:
    _, sampling = asked(
        {"suppress_tokens": [1, 2], "bad_words": ["a"], "sequence_bias": {"a": 1}, "logit_bias": {"7": -100, "0": 0.5}}
    )
    assert sampling.suppress_tokens == (1, 2)
    assert sampling.logit_bias == ((7, -100.0), (0, 0.5))
    in_ids = sampling.in_ids(9, lambda text: [3, 4])
    assert in_ids.bad_words == ((3, 4),)
    assert in_ids.sequence_bias == (((3, 4), 1.0),)
    assert Sampling().in_ids(9, lambda text: []) == Sampling()


@pytest.mark.parametrize(
    "options", [None, {}, {"seed": None, "stop": None, "suppress_tokens": None, "logit_bias": None}]
)
def test_null_is_the_default_where_that_is_null(options: object) -> None:
    assert asked(options) == (TextGeneration(), Sampling())


@pytest.mark.parametrize("key", ["top_k", "temperature", "echo", "max_tokens", "typical_p"])
def test_null_is_refused_elsewhere(key: str) -> None:
    with pytest.raises(NullNotAllowed, match=f"^{key} must not be null"):
        asked({key: None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 3.5),
        ("top_k", True),
        ("top_k", "3"),
        ("top_k", 10**30),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", [1]),
        ("temperature", json.loads("[" * 900 + "]" * 900)),
        ("temperature", 10**399),
        ("temperature", -0.1),
        ("echo", 1),
        ("stop", "."),
        ("stop", [1]),
        ("seed", 2**63),
        ("typical_p", 0),
        ("typical_p", 1.1),
        ("epsilon_cutoff", 1),
        ("eta_cutoff", -0.1),
        ("no_repeat_ngram_size", -1),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", [True]),
        ("suppress_tokens", {"1": 1}),
        ("bad_words", [""]),
        ("bad_words", ["x" * 70_000]),
        ("sequence_bias", {"": 1}),
        ("sequence_bias", {"a": "b"}),
        ("sequence_bias", {"a": 1e7}),
        ("sequence_bias", [["a", 1]]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"01": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("eos_token", -2),
        ("choices", []),
        ("choices", "yes"),
        ("choices", [1]),
        ("regex", 1),
        ("regex", ["a"]),
    ],
)
def test_bad_values_are_named_by_their_key(key: str, value: object) -> None:
    with pytest.raises(InvalidParameter, match=f"^{key} must be ") as error:
        asked({key: value})
    assert error.value.hint
    assert len(error.value.message) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "must be an object"),
        ("3", "must be an object"),
        ("{", "cannot be read"),
        ('{"temperature": NaN}', "NaN is no number"),
        ('{"temperature": -Infinity}', "Infinity is no number"),
        ('{"top_k": 1, "top_k": 1}', "twice"),
        ('{"top_k": %s}' % ("9" * 5000), "5000 digits"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (MOST_OPTION_CHARACTERS + 1), f"{MOST_OPTION_CHARACTERS} are the most"),
    ],
)
def test_what_is_no_object_that_can_be_read(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        asked(text)


def test_an_unknown_key_is_named_with_all_there_are() -> None:
    with pytest.raises(InvalidParameter, match='no key "temprature"') as error:
        asked({"temprature": 1})
    assert all(one.keys[0] in error.value.hint for one in (Sampling.options() | TextGeneration.options()).values())
    with pytest.raises(InvalidParameter, match='no key "num_beams"'):
        asked({"num_beams": 3})
    with pytest.raises(InvalidParameter, match='no key "echo"'):
        gather({"options": '{"echo": true}'}, Generation, Sampling)


def test_one_option_under_two_names_or_beside_a_parameter_must_agree() -> None:
    assert asked({"top_k": 3, "topk": 3})[1].topk == 3
    with pytest.raises(InvalidParameter, match=r"^top_k and topk are the same option, and options say 3 and 4$"):
        asked({"top_k": 3, "topk": 4})
    assert asked({"top_k": 3}, topk=3)[1].topk == 3
    assert asked({"stop_strings": ["a"]}, stop=["a"])[0].stop == ("a",)
    assert asked({"top_k": 50}, topk=50)[1].topk == 50
    with pytest.raises(InvalidParameter, match=r"^topk is 5, and options say top_k 3$"):
        asked({"top_k": 3}, topk=5)


def test_beam_search_refuses_what_is_for_drawing_by_name() -> None:
    drawing = {name for name, one in Sampling.options().items() if one.draws}
    assert drawing == {"temperature", *processors.CUTS}
    for name in drawing:
        for key in Sampling.options()[name].keys:
            with pytest.raises(InvalidParameter, match=f"^{key} is for drawing tokens"):
                gather({"options": json.dumps({key: 1})}, BeamSearch, Sampling)
    call, sampling = gather({"options": '{"num_beams": 3, "no_repeat_ngram_size": 2}'}, BeamSearch, Sampling)
    assert (call.beam_width, sampling.no_repeat_ngram_size) == (3, 2)


def test_ids_that_the_model_does_not_have() -> None:
    for options in (
        {"suppress_tokens": [9]},
        {"logit_bias": {"9": 1}},
        {"bad_words": ["a"]},
        {"sequence_bias": {"a": 1}},
    ):
        _, sampling = asked(options)
        with pytest.raises(InvalidParameter, match=rf"^token id 9 of {next(iter(options))} is not in 0\.\.8$"):
            sampling.in_ids(9, lambda text: [9])


@pytest.mark.parametrize(("part", "declared"), [("generation", all_options), ("training", training_options)])
def test_declarations_are_read_without_numpy(part: str, declared: Callable[[], Iterator[Option]]) -> None:
    """So that build.py runs in any Python."""
    program = f"""if True:
        import sys
        sys.modules["numpy"] = None
        from pg_gpt2.{part}.options import all_options
        print(len(list(all_options())))
    """
    package = Path(processors.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=package, capture_output=True, text=True)
    assert done.stdout == f"{len(list(declared()))}\n", done.stderr
    assert all(one.meaning and one.hint for one in declared())
