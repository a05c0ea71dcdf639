"""Constraints in SQL: what is generated is one of the choices, or satisfies `~`, whichever function makes it."""

import json
import random
import re

import psycopg
import pytest

CORPUS = 'low lower lowest newer wider naïve 日本語 🙂🙃 2026-01-02 10:20 {"name": "low", "age": 12} yes no maybe '

PATTERNS = [
    r"\d{4}-\d{2}-\d{2}",
    r"(0[1-9]|1[0-2])/(19|20)\d\d",
    r"[a-z]+@[a-z]+\.(com|org)",
    r"(low|lower|lowest)( (low|lower|lowest)){0,3}",
    r"\w+( \w+)*[.!?]",
    r".{0,12}",
    r"[^a-z]{1,5}",
    r"[^[:alpha:]]{2,4}[[:upper:]]+",
    r'\{"name": "[^"\\]{0,8}", "age": \d{1,3}\}',
    r"(日本|🙂|naïve)+",
    r"\S+\s\S+",
    r"\D{3}\W{2}",
    r"[\w.-]+",
    r"a*?b+?c{2,3}?",
    r"^(x|y)$|^z+$",
    r"\u00e9|\x41|\U0001F642",
    r"\{a\}[]x]|[^]x]",
    r"a{0}b{1}c{2,}",
    r"()|a|",
    r"[+--]{2}|[a-]|[-a]",
]


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe(%s, 330, 'tiny')", [f"VALUES ($q${CORPUS * 5}$q$)"])
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 32, 64, seed => 1)")
    module_conn.execute("SELECT llm_init_model('bare', 1, 2, 8, 16, 50)")


def one(conn, statement, *args):
    return conn.execute(statement, args).fetchone()[0]


GENERATE = "SELECT llm_generate('low', %s, model_name => 'tiny', seed => %s, echo => false, options => %s)"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_generated_satisfies_postgresqls_operator(module_conn, pattern):
    """Of the whole text; by sampling at any temperature and greedily, with few tokens and with many."""
    options = json.dumps({"regex": pattern})
    for seed in range(12):
        temperature, max_tokens = random.Random(seed).choice([(0, 30), (1, 30), (5, 90)])
        found = one(
            module_conn,
            "SELECT text ~ ('^(?:' || %s || ')$') FROM llm_generate('low', %s, %s, model_name => 'tiny', seed => %s,"
            " echo => false, options => %s) AS text",
            pattern,
            max_tokens,
            temperature,
            seed,
            options,
        )
        assert found


@pytest.mark.parametrize("fast", ["on", "off"])
@pytest.mark.parametrize(
    "options",
    [
        {"regex": PATTERNS[0]},
        {"regex": PATTERNS[8]},
        {"choices": ["yes", "no", "maybe", "no way"]},
        {"regex": PATTERNS[4]},
    ],
    ids=["date", "record", "choices", "words"],
)
def test_the_same_text_alone_in_a_batch_in_a_stream_and_as_tokens(connect, fast, options):
    """Past the window as well: it has 64 positions."""
    conn = connect()
    conn.execute(f"SET pg_gpt2.fast = {fast}")
    text = json.dumps(options)
    prompts = ["low", "wider newer", "2026-01-02 " * 20, ""]
    alone = [one(conn, GENERATE.replace("'low'", "%s"), prompt, 70, 5 + n, text) for n, prompt in enumerate(prompts)]
    batch = conn.execute(
        "SELECT text FROM llm_generate_batch(%s, 70, model_name => 'tiny', seed => 5, echo => false, options => %s)",
        [prompts, text],
    ).fetchall()
    assert [row[0] for row in batch] == alone
    for n, prompt in enumerate(prompts[:3]):
        rows = conn.execute(
            "SELECT text, is_complete, finish_reason, logprob FROM llm_generate_stream(%s, 70, model_name => 'tiny', seed => %s,"
            " echo => false, options => %s)",
            [prompt, 5 + n, text],
        ).fetchall()
        assert rows[-1][:2] == (alone[n], True)
        assert all(row[3] < 0 for row in rows)
        ids = (
            one(
                conn,
                "SELECT llm_generate_tokens(llm_encode(%s, 'tiny'), 70, model_name => 'tiny', seed => %s, options => %s)",
                prompt,
                5 + n,
                text,
            )
            if n < 2
            else None
        )
        if ids is not None:
            decoded = one(conn, "SELECT replace(llm_decode(%s, 'tiny'), '<|endoftext|>', '')", ids)
            assert decoded == alone[n]


def test_choices_are_the_choices(module_conn):
    """A choice that begins another, too; and what no text of the model's language would be."""
    choices = ["yes", "no", "no way", "日本", "qzxv", 'it\'s "quoted" \\ ']
    options = json.dumps({"choices": choices})
    seen = {one(module_conn, GENERATE, 40, seed, options) for seed in range(60)}
    assert seen <= set(choices)
    assert len(seen) > 2
    for choice in choices:
        alone = json.dumps({"choices": [choice]})
        assert one(module_conn, GENERATE, 40, 0, alone) == choice


def test_beams_are_among_the_choices_and_match_the_pattern(module_conn):
    statement = "SELECT text FROM llm_beam_search('low', 4, %s, model_name => 'tiny', eos_token => %s, options => %s)"
    choices = ["yes", "no", "maybe", "no way", "perhaps not"]
    for eos in (None, -1):
        found = module_conn.execute(statement, [20, eos, json.dumps({"choices": choices})]).fetchall()
        assert 2 <= len(found) <= 4
        assert {row[0] for row in found} <= set(choices)
        found = module_conn.execute(statement, [11, eos, json.dumps({"regex": PATTERNS[0]})]).fetchall()
        assert found
        for (text,) in found:
            assert one(module_conn, "SELECT %s ~ '^\\d{4}-\\d{2}-\\d{2}$'", text)


def test_with_the_fewest_tokens_the_text_is_complete_and_with_fewer_there_is_an_error(module_conn):
    options = json.dumps({"regex": PATTERNS[8]})
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="max_tokens is 1, and") as error:
        one(module_conn, GENERATE, 1, 0, options)
    fewest = int(error.value.diag.message_primary.split()[-1])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"max_tokens is {fewest - 1}, and"):
        one(module_conn, GENERATE, fewest - 1, 0, options)
    for max_tokens in range(fewest, fewest + 5):
        for seed in range(5):
            assert re.fullmatch(PATTERNS[8], one(module_conn, GENERATE, max_tokens, seed, options))


@pytest.mark.parametrize(
    "call",
    [
        "llm_generate_rows('SELECT 1, ''low''::text', 2, {})",
        "llm_generate_rows('SELECT 1, ''low''::text WHERE false', 2, {})",
        "llm_generate_batch('{{low,NULL}}', 2, {})",
        "llm_generate_batch('{{NULL}}', 2, {})",
    ],
)
def test_too_few_tokens_are_refused_with_the_call_whatever_texts_there_are(module_conn, call):
    options = json.dumps({"json_schema": {"type": "string", "format": "date"}})
    statement = f"SELECT * FROM {call.format('model_name => %s, options => %s')}"
    with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
        module_conn.execute(statement, ["tiny", options])
    assert "max_tokens is 2, and a complete text" in error.value.diag.message_primary


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a)\1", "character 4: a back reference is not regular"),
        ("a(?=b)", "character 2: look-ahead is not regular"),
        ("(?<!a)b", "character 1: look-behind"),
        (r"\bword", "character 1: a place between characters is not regular"),
        ("a{2", r"character 2: a bound is"),
        ("(a", "character 1: a group is not closed"),
        ("a)", "character 2: a parenthesis closes no group"),
        ("*a", "character 1: there is nothing"),
        ("a**", "character 3: there is nothing"),
        ("[b-a]", "character 2: this is no range"),
        ("[a", "character 1: a bracket is not closed"),
        ("a^", r"character 2: \^ may stand at the beginning only"),
        ("a$b", r"character 3|character 2"),
    ],
)
def test_a_pattern_that_is_not_regular_is_refused_with_the_reason(module_conn, pattern, words):
    with pytest.raises(psycopg.errors.InvalidRegularExpression, match=words):
        one(module_conn, GENERATE, 20, 0, json.dumps({"regex": pattern}))


def test_a_model_without_vocabulary(module_conn):
    for call in ("llm_generate_tokens('{1}'", "llm_beam_search(prompt_ids => '{1}'"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has no vocabulary"):
            module_conn.execute(f"SELECT * FROM {call}, model_name => 'bare', options => '{{\"regex\": \"a\"}}')")


def test_another_vocabulary_is_another_constraint(connect):
    """What a session keeps is that of the vocabulary that it has now."""
    conn = connect()
    conn.execute("SELECT llm_train_bpe('VALUES (''aaa bbb'')', 270, 'other')")
    conn.execute("SELECT llm_init_model('other', 1, 2, 8, 32, 400)")
    options = json.dumps({"regex": "(aaa|bbb)+"})
    statement = f"SELECT llm_generate('a', 9, model_name => 'other', seed => 1, echo => false, options => '{options}')"
    assert set(one(conn, statement)) <= {"a", "b"}
    conn.execute("DELETE FROM llm_bpe_vocab WHERE model = 'other'")
    conn.execute("DELETE FROM llm_bpe_merges WHERE model = 'other'")
    conn.execute("SELECT llm_train_bpe('VALUES (''bbb bab aab aba'')', 275, 'other')")
    for seed in range(5):
        assert len(one(conn, statement.replace("seed => 1", f"seed => {seed}"))) % 3 == 0
