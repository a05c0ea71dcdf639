"""Options of training: their keys, what is refused and how, and that SQL has the defaults that are declared."""

import json
import re
from pathlib import Path

import pytest
from pg_gpt2.errors import FeatureNotSupported, InvalidParameter, NullNotAllowed
from pg_gpt2.options import Option, manual
from pg_gpt2.training.options import Course, Hyperparameters, RunOptions, Servers, Threads, all_options, gather

SQL = (Path(__file__).resolve().parents[2] / "sql" / "training.sql").read_text(encoding="utf-8")
SAID = {"NULL": None, "false": False, "true": True}
KINDS = {"double precision": "number", "integer": "integer", "bigint": "integer", "text": "text"}
OTHERS = ("model", "n_steps", "n_layer", "n_head", "d", "vocab", "options")  # parameters that are no options
OF_THE_PROCEDURE = ("commit_every", "flush_seconds", "wait")


def parameters(name: str) -> dict[str, tuple[str, object]]:
    """Name -> (type, default) of the parameters of a function of SQL."""
    (declared,) = re.findall(rf"^CREATE (?:FUNCTION|PROCEDURE) {name}\(\n(.*?)^\)", SQL, re.MULTILINE | re.DOTALL)
    found: dict[str, tuple[str, object]] = {}
    for line in declared.splitlines():
        parameter, kind, default = re.fullmatch(r" +(\w+) (.*?)(?: DEFAULT (.*?))?,?", line).groups()
        default = default.replace("'", '"') if default else "null"
        found[parameter] = (kind, SAID[default] if default in SAID else json.loads(default))
    return found


@pytest.mark.parametrize("name", ["llm_train", "llm_train_run"])
def test_sql_has_the_types_and_defaults_that_are_declared(name: str) -> None:
    of_sql = {
        parameter: (KINDS[kind], default)
        for parameter, (kind, default) in parameters(name).items()
        if parameter not in (*OTHERS, *OF_THE_PROCEDURE)
    }
    keys = {one.name for kind in (Course, Servers) for one in kind.options().values()}  # of options alone
    assert of_sql == {one.name: (one.kind.name, one.default) for one in all_options() if one.name not in keys}
    assert list(parameters(name))[-1] == "options"


def test_sql_has_the_types_and_defaults_of_a_step_by_hand_too_but_for_the_warm_up() -> None:
    of_sql = parameters("llm_train_step")
    declared = (*Hyperparameters.options().values(), *Threads.options().values(), RunOptions.options()["audit"])
    expected = {one.name: one.default for one in declared} | {"warmup": 0}
    assert {name: of_sql[name][1] for name in expected} == expected


def asked(options: object, **given: object) -> tuple[Hyperparameters, RunOptions, Course, Threads]:
    defaults = {one.name: one.default for one in all_options()}
    settings, run, course, workers, _ = gather(
        {**defaults, "n_layer": None, **given, "options": None if options is None else json.dumps(options)},
        Hyperparameters,
        RunOptions,
        Course,
        Threads,
        Servers,
    )
    return settings, run, course, workers


def test_defaults_are_good_values() -> None:
    assert asked(None) == asked({}) == (Hyperparameters(), RunOptions(), Course(), Threads())
    for one in all_options():
        assert one.check(one.default) == one.default


def test_keys_of_hugging_face_set_parameters() -> None:
    settings, run, _, _ = asked(
        {
            "adam_beta1": 0.8,
            "adam_beta2": 0.9,
            "adam_epsilon": 1e-7,
            "weight_decay": 0.1,
            "learning_rate": 1,
            "warmup_steps": 5,
            "max_grad_norm": 1.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "eval_steps": 4,
            "logging_steps": 0,
        }
    )
    assert settings == Hyperparameters(0.1, 0.8, 0.9, 1e-7, 0.1, 1.0, 5, 0.0, 1.0, 0)
    assert run == RunOptions(2, 3, 4, 0, "tape")


def test_every_parameter_is_a_key_and_the_manual_has_each_once() -> None:
    for one in all_options():
        assert asked(dict.fromkeys(one.keys, one.default)) == asked(None)
    names = [row[0] for row in manual(all_options())]
    assert len(set(names)) == len(names) == len(list(all_options()))
    assert {name: default for name, _, default, _, _ in manual(all_options())}["adam_epsilon"] == "1e-08"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dropout_p", 1),
        ("dropout_p", "0.1"),
        ("beta1", 1),
        ("adam_beta2", -0.1),
        ("adam_epsilon", -1),
        ("wd", -1),
        ("weight_decay", -1),
        ("learning_rate", -1e-3),
        ("lr_max", True),
        ("lr_max", 10**399),
        ("warmup", 1.5),
        ("warmup_steps", -1),
        ("min_lr", -1),
        ("max_grad_norm", 0),
        ("seed", 2**63),
        ("batch_size", 0),
        ("grad_accum", 0),
        ("eval_steps", -1),
        ("logging_steps", -1),
        ("audit", "some"),
        ("lr_schedule", "Linear"),
        ("lr_schedule", 1),
        ("patience", 0),
        ("patience", 2.5),
        ("min_delta", -1e-9),
        ("min_delta", "0"),
        ("keep_best", "true"),
        ("keep_best", 1),
        ("grad_workers", 0),
        ("prune_workers", 0),
    ],
)
def test_bad_values_are_named_by_their_key(key: str, value: object) -> None:
    with pytest.raises(InvalidParameter, match=f"^{key} must be ") as error:
        asked({key: value})
    assert error.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [one.name for one in all_options() if one.kind.name == "number"])
def test_a_parameter_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(InvalidParameter, match=f"^{name} must be finite"):
        asked(None, **{name: value})


@pytest.mark.parametrize("one", list(all_options()), ids=lambda one: one.name)
def test_null_is_the_default_where_that_is_null_and_refused_elsewhere(one: Option) -> None:
    for options, given in ((None, {one.name: None}), ({one.keys[0]: None}, {})):
        if one.default in (None, ()):
            assert asked(options, **given) == asked(None)
        else:
            name = one.keys[0] if options else one.name
            with pytest.raises(NullNotAllowed, match=f"^{name} must not be null"):
                asked(options, **given)


def test_an_unknown_key_is_named_with_all_there_are() -> None:
    with pytest.raises(InvalidParameter, match='no key "adam_beta3"') as error:
        asked({"adam_beta3": 1})
    assert error.value.hint.startswith("llm_training_options tells of ")
    assert all(one.keys[0] in error.value.hint for one in all_options())


def test_one_option_under_two_names_or_beside_a_parameter_must_agree() -> None:
    assert asked({"weight_decay": 0.2, "wd": 0.2})[0].weight_decay == 0.2
    assert asked({"weight_decay": 0.2}, wd=0.2)[0].weight_decay == 0.2
    with pytest.raises(
        InvalidParameter, match=r"^weight_decay and wd are the same option, and options say 0\.2 and 0\.3$"
    ):
        asked({"weight_decay": 0.2, "wd": 0.3})
    with pytest.raises(InvalidParameter, match=r"^wd is 0\.3, and options say weight_decay 0\.2$"):
        asked({"weight_decay": 0.2}, wd=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 1}, "patience needs evaluations, and eval_every is null"),
        ({"keep_best": True, "eval_every": 0}, "keep_best needs evaluations, and eval_every is 0"),
        ({"min_delta": 0.1, "eval_every": 1, "keep_best": True}, "min_delta 0.1 has no effect without patience"),
        ({"min_lr": 0.1, "lr_schedule": "constant"}, "min_lr 0.1 has no effect with lr_schedule constant"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(options: dict, message: str) -> None:
    settings, run, course, _ = asked(options)
    with pytest.raises(InvalidParameter, match=f"^{message}$") as error:
        course.require_sense(settings, run)
    assert error.value.hint


def test_what_has_a_meaning_is_taken() -> None:
    for options in (
        {},
        {"patience": 2, "min_delta": 0.5, "keep_best": True, "eval_steps": 7},
        {"keep_best": True, "eval_every": 1, "lr_schedule": "linear", "min_lr": 0.1},
        {"lr_schedule": "constant", "min_delta": 0},
    ):
        settings, run, course, _ = asked(options)
        course.require_sense(settings, run)


def test_workers_need_shards_and_are_named_once() -> None:
    Servers(("a", "b")).require_sense(Course(shards=2))
    Servers().require_sense(Course())
    with pytest.raises(InvalidParameter, match=r"^workers have nothing to do: shards is 1$"):
        Servers(("a",)).require_sense(Course())
    with pytest.raises(InvalidParameter, match=r"""^workers \["a'", "a'"\] names a server twice"""):
        Servers(("a'", "a'")).require_sense(Course(shards=2))
    with pytest.raises(InvalidParameter, match=r"^shards 7 is more than the 6 rows of a step$"):
        Course(shards=7).require_sense(Hyperparameters(), RunOptions(batch_size=3, grad_accum=2))


def test_replicas_learn_by_themselves_where_there_are_several_and_no_audit() -> None:
    rounds, run = Course(shards=2, sync_every=5, outer_lr=1), RunOptions(audit="none")
    rounds.require_sense(Hyperparameters(), run)
    assert rounds.is_local
    assert not Course(shards=2).is_local
    for wrong, message in (
        (Course(sync_every=5), "sync_every 5 has nothing to average: shards is 1"),
        (Course(shards=2, outer_momentum=0.5), "outer_momentum 0.5 has no effect without sync_every"),
        (Course(outer_lr=1), "outer_lr 1 has no effect without sync_every"),
    ):
        with pytest.raises(InvalidParameter, match=f"^{message}$"):
            wrong.require_sense(Hyperparameters(), run)
    with pytest.raises(FeatureNotSupported, match=r"^audit full records steps of one model"):
        rounds.require_sense(Hyperparameters(), RunOptions(audit="full"))
