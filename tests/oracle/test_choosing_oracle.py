"""Choosing against lm-evaluation-harness: its HFLM on the same weights and vocabulary, its loglikelihood, its accuracies.

It needs lm_eval, accelerate, psutil and what those import. What the harness only needs for its benchmarks, their files and
metrics, is not used here, and stands empty where it is not installed.
"""

import importlib
import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psycopg
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

pytest.importorskip("lm_eval", reason="needs lm_eval")
pytest.importorskip("accelerate", reason="needs accelerate")
for unused in ("datasets", "sacrebleu", "dill"):
    if importlib.util.find_spec(unused) is None:
        sys.modules[unused] = ModuleType(unused)
Instance = importlib.import_module("lm_eval.api.instance").Instance
ConfigurableTask = importlib.import_module("lm_eval.api.task").ConfigurableTask
HFLM = importlib.import_module("lm_eval.models.huggingface").HFLM

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer" / "learned"
WINDOW = 64
TOLERANCE = 1e-3  # on sums of up to 30 log-probabilities of float32
WORDS = [
    "the",
    "low",
    "lower",
    "newest",
    "it's",
    "we'll",
    "1999",
    "naïve",
    "日本",
    "😀",
    "...",
    "(x)",
    "\n",
    "  ",
    "is",
    "an",
]
METRICS = {"none": "acc", "bytes": "acc_bytes", "prior": "acc_mutual_info"}


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """A model of random weights in the harness."""
    directory = tmp_path_factory.mktemp("tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_bytes((GOLDEN / name).read_bytes())
    tokenizer = GPT2TokenizerFast(str(directory / "vocab.json"), str(directory / "merges.txt"))
    eos = tokenizer.eos_token_id
    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=64,
        n_positions=WINDOW,
        vocab_size=len(tokenizer),
        initializer_range=0.15,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    return HFLM(
        pretrained=GPT2LMHeadModel(config).eval(), tokenizer=tokenizer, backend="causal", device="cpu", batch_size=8
    )


@pytest.fixture(scope="module")
def sql(harness, dsn):
    """A session of the throw-away cluster that has the same model; it is gone afterwards."""
    files = Path(os.environ["PG_GPT2_TEST_DATA"])
    harness.model.save_pretrained(files / "chooser")
    paths = [
        files / "chooser" / "model.safetensors",
        files / "chooser" / "vocab.json",
        files / "chooser" / "merges.txt",
    ]
    for path in paths[1:]:
        path.write_bytes((GOLDEN / path.name).read_bytes())
    for path in paths:
        path.chmod(0o644)
    config = harness.model.config
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id)"
            " VALUES ('chooser', 3, 4, 64, %s, %s, %s)",
            [WINDOW, config.vocab_size, config.eos_token_id],
        )
        conn.execute("SELECT pg_llm_import_safetensors(%s, 'chooser')", [str(paths[0])])
        conn.execute("SELECT pg_llm_load_bpe_vocab(%s, 'chooser')", [str(paths[1])])
        conn.execute("SELECT pg_llm_load_bpe_merges(%s, 'chooser')", [str(paths[2])])
        yield conn
        conn.rollback()
    for path in (files / "chooser").iterdir():
        path.unlink()
    (files / "chooser").rmdir()


def text(source: random.Random, least: int, most: int) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(least, most)))


def questions(count: int) -> list[tuple[str, list[str]]]:
    """Prompts, some of them empty, with blanks at the end, or longer than the window; and choices that begin alike."""
    source = random.Random(3)
    found = []
    for n in range(count):
        prompt = "" if n % 11 == 0 else text(source, 1, 60 if n % 3 == 0 else 12).strip() or "the"
        stems = [text(source, 1, 3).strip() or "a" for _ in range(3)]
        choices = [source.choice(stems) + " " + text(source, 1, 4).strip() for _ in range(source.randint(2, 6))]
        blanks = source.choice(["", "", " ", "\n", "  \n"])
        found.append((prompt + (blanks if prompt else ""), [c if blanks else " " + c for c in choices]))
    return found


def log_likelihoods(harness, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]
    return harness.loglikelihood(requests, disable_tqdm=True)


def chosen(sql: psycopg.Connection, prompt: str, choices: list[str], normalize: str) -> list[tuple[str, float]]:
    query = "SELECT choice, logprob FROM llm_choose(%s, %s, %s, 'chooser') ORDER BY rank"
    return sql.execute(query, [prompt, choices, normalize]).fetchall()


def test_log_likelihoods_are_those_of_lm_evaluation_harness(sql, harness):
    asked = questions(120)
    pairs = [(prompt, choice) for prompt, choices in asked for choice in choices]
    wanted = iter([value for value, _ in log_likelihoods(harness, pairs)])
    cut = 0
    for prompt, choices in asked:
        found = dict(chosen(sql, prompt, choices, "none"))
        for choice in choices:
            assert found[choice] == pytest.approx(next(wanted), abs=TOLERANCE), (prompt, choice)
        cut += len(harness.tok_encode(prompt)) > WINDOW
    assert cut > 5, "some prompts lose their beginning"


@pytest.mark.parametrize("normalize", METRICS)
def test_accuracies_are_those_of_lm_evaluation_harness(sql, harness, normalize):
    """Its task gives the choices with a delimiter before them, a blank: what we have as a prompt that ends in one."""
    right, theirs, norms = [], [], 0
    for prompt, choices in questions(60):
        prompt, choices = prompt.rstrip() or "the", [choice.strip() for choice in choices]
        if len(set(choices)) < len(choices):
            continue
        pairs = [(prompt, f" {choice}") for choice in choices]
        values = log_likelihoods(harness, pairs + [("", continuation) for _, continuation in pairs])
        best = chosen(sql, prompt + " ", choices, normalize)[0][0]
        for gold in range(len(choices)):
            metrics = results(choices, gold, values if normalize == "prior" else values[: len(choices)])
            theirs.append(metrics[METRICS[normalize]])
            right.append(float(best == choices[gold]))
            norms += metrics["acc_norm"] == metrics["acc_bytes"] or not all(map(str.isascii, choices))
    assert len(right) > 100
    assert right == theirs
    assert norms == len(right), "acc_norm counts characters, which are bytes in ASCII"


def results(choices: list[str], gold: int, values: list[tuple[float, bool]]) -> dict[str, float]:
    """What the harness makes of the log-likelihoods of a question."""
    names = ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"]
    task = SimpleNamespace(
        config=SimpleNamespace(process_results=None),
        OUTPUT_TYPE="multiple_choice",
        _metric_fn_list=dict.fromkeys(names if len(values) > len(choices) else names[:3]),
        doc_to_choice=lambda doc: choices,
        doc_to_target=lambda doc: gold,
        multiple_input=0,
        multiple_target=0,
    )
    return ConfigurableTask.process_results(task, {}, values)


def task_results(harness, docs: list[tuple[str, str, list[str]]], normalize: str) -> list[dict[str, float]]:
    """What the harness gives for each (prompt, answer, choices), a blank before each choice."""
    found = []
    for prompt, answer, choices in docs:
        pairs = [(prompt, f" {choice}") for choice in choices]
        if normalize == "prior":
            pairs += [("", continuation) for _, continuation in pairs]
        gold = choices.index(answer) if answer in choices else -100
        found.append(results(choices, gold, log_likelihoods(harness, pairs)))
    return found


def evaluated(
    sql: psycopg.Connection, docs: list[tuple[str, str, list[str]]], shared: list[str] | None, normalize: str
):
    """(accuracy, accuracy_norm, n) of the same rows, whose choices are their own or `shared`."""
    columns = "prompt || ' ', answer" + ("" if shared else ", choices")
    sql.execute("CREATE TEMP TABLE IF NOT EXISTS doc (id integer, prompt text, answer text, choices text[])")
    sql.execute("TRUNCATE doc")
    with sql.cursor() as cursor:
        cursor.executemany("INSERT INTO doc VALUES (%s, %s, %s, %s)", [(n, *doc) for n, doc in enumerate(docs)])
    query = "SELECT accuracy, accuracy_norm, n FROM llm_evaluate_choices(%s, %s, %s, 'chooser')"
    return sql.execute(query, [f"SELECT {columns} FROM doc ORDER BY id", shared, normalize]).fetchone()


@pytest.mark.parametrize("normalize", METRICS)
def test_an_evaluation_of_rows_with_their_own_endings_has_the_accuracies_of_the_harness(sql, harness, normalize):
    """As HellaSwag: a context, and four endings of which one is right; not all in ASCII, and some contexts are cut."""
    source = random.Random(8)
    docs = []
    for n in range(150):
        context = text(source, 3, 60 if n % 10 == 0 else 20).strip() or "the"
        endings = list({text(source, 1, 9).strip() or "low" for _ in range(4)})
        docs.append((context, source.choice(endings), endings))
    theirs = task_results(harness, docs, normalize)
    assert any(not ending.isascii() for _, _, endings in docs for ending in endings)
    accuracy, accuracy_norm, n = evaluated(sql, docs, None, normalize)
    assert n == len(docs)
    assert accuracy == pytest.approx(np.mean([metrics[METRICS[normalize]] for metrics in theirs]))
    assert accuracy_norm == pytest.approx(np.mean([metrics["acc_norm"] for metrics in theirs]))
    assert 0.1 < accuracy < 0.9, "it is a question"


def test_an_evaluation_of_the_last_word_has_the_accuracies_of_the_harness(sql, harness):
    """LAMBADA by choice: which of some words ends the passage; one of them is right, or none."""
    source = random.Random(4)
    words = ["the", "low", "lower", "newest", "1999", "naïve", "日本"]
    docs = [
        (text(source, 5, 25).strip() or "the", source.choice([*words, "nothing of these"]), words) for _ in range(120)
    ]
    theirs = task_results(harness, docs, "none")
    accuracy, accuracy_norm, n = evaluated(sql, docs, words, "none")
    assert n == len(docs)
    assert accuracy == pytest.approx(np.mean([metrics["acc"] for metrics in theirs]))
    assert accuracy_norm == pytest.approx(np.mean([metrics["acc_norm"] for metrics in theirs]))
    assert evaluated(sql, docs, None, "none") == (accuracy, accuracy_norm, n), "their own choices or those of all"


def test_rows_have_the_harness_choices(sql, harness):
    asked = [(prompt, choice) for prompt, choices in questions(40) for choice in choices[:1]]
    labels = [" low", " lower", " the low", " 1999", " naïve"]
    sql.execute("CREATE TEMP TABLE asked (id integer, prompt text)")
    with sql.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO asked VALUES (%s, %s)", [(n, prompt.rstrip()) for n, (prompt, _) in enumerate(asked)]
        )
    rows = sql.execute(
        "SELECT * FROM llm_choose_rows('SELECT id, prompt FROM asked ORDER BY id', %s, 'none', 'chooser')", [labels]
    ).fetchall()
    values = log_likelihoods(harness, [(prompt.rstrip(), label) for prompt, _ in asked for label in labels])
    lls = np.array([value for value, _ in values]).reshape(len(asked), -1)
    shares = np.exp(lls - lls.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for (key, choice, probability), (n, share) in zip(rows, enumerate(shares), strict=True):
        assert (key, choice) == (str(n), labels[int(share.argmax())])
        assert probability == pytest.approx(share.max(), abs=TOLERANCE)
