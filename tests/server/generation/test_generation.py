"""What llm_generate and its family promise beside the numbers: seeds, batches, windows, prompts as ids, prompt lookup."""

import json
import os
import random
import re

import psycopg
import pytest


@pytest.fixture
def notices(conn):
    """NOTICEs of the session, as they come."""
    found: list[str] = []
    conn.add_notice_handler(lambda diagnostic: found.append(diagnostic.message_primary))
    return found


def one(conn, statement, *args):
    return conn.execute(statement, args).fetchone()[0]


# ---- reproducible


def test_the_same_seed_gives_the_same_text_in_every_session(connect):
    statement = "SELECT llm_generate('low', 30, model_name => 'tiny', seed => 42)"
    first, second = connect(), connect()
    expected = one(first, statement)
    second.execute("SELECT setseed(0.1), llm_generate('wider', 5, model_name => 'tiny'), random()")
    assert one(second, statement) == one(first, statement) == expected


def test_setseed_fixes_what_has_no_seed(connect):
    statement = "SELECT string_agg(llm_generate('low', 10, model_name => 'tiny'), '|') FROM generate_series(1, 3)"
    texts = []
    for conn in (connect(), connect()):
        conn.execute("SELECT setseed(0.5)")
        texts.append(one(conn, statement))
    assert texts[0] == texts[1]
    assert len(set(texts[0].split("|"))) > 1
    assert one(conn, statement) != texts[0]


def test_threads_do_not_change_the_logits(module_conn):
    logits = []
    for threads in (1, 2, 3):
        module_conn.execute("SELECT set_config('pg_gpt2.threads', %s, false)", [str(threads)])
        logits.append(one(module_conn, "SELECT llm_logits(ARRAY(SELECT generate_series(1, 200)), 'slow')"))
    module_conn.execute("RESET pg_gpt2.threads")
    assert len(set(logits)) == 1


def test_a_row_of_generations_is_one_draw_each(module_conn):
    """VOLATILE: the function runs again for every row, although its arguments are constants."""
    texts = module_conn.execute(
        "SELECT llm_generate('low', 10, model_name => 'tiny') FROM generate_series(1, 5)"
    ).fetchall()
    assert len(set(texts)) == 5


OPTIONS = [
    {},
    {"no_repeat_ngram_size": 2},
    {"presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {"5": 2}},
    {"bad_words": ["e", "low"], "sequence_bias": {"er": 3, "wid": -1}, "suppress_tokens": [1, 2, 3]},
    {"epsilon_cutoff": 0.005},
    {"typical_p": 0.9, "eta_cutoff": 0.002},
]


def test_batches_of_every_kind_give_each_prompt_what_it_gets_alone(module_conn):
    """Where rows of a pass have other bits in company, whatever rounding could decide is decided as for one prompt alone."""
    for seed in range(int(os.environ.get("PG_GPT2_BATCHES", "25"))):
        rng = random.Random(seed)
        prompts = [
            rng.choice(["low", "newer wider", "naïve 日本", "🙂"]) * rng.randint(1, 9) for _ in range(rng.randint(2, 6))
        ]
        options = (rng.randint(5, 60), rng.choice([0, 0.3, 1, 2]), rng.choice([0, 3, 50]), rng.choice([1, 0.95, 0.5]))
        options += (rng.choice([1, 1.2, 0.8]), rng.choice([0, 0.1]), json.dumps(rng.choice(OPTIONS)))
        call = "%s, %s, %s, %s, %s, model_name => 'tiny', repetition_penalty => %s, min_p => %s, options => %s, eos_token => -1,"
        call += " seed => %s"
        batch = module_conn.execute(
            f"SELECT text FROM llm_generate_batch({call}) ORDER BY n", [prompts, *options, seed]
        ).fetchall()
        alone = [
            (one(module_conn, f"SELECT llm_generate({call})", prompt, *options, seed + n),)
            for n, prompt in enumerate(prompts)
        ]
        assert batch == alone, f"batch {seed}: {options}"


# ---- windows


def test_generation_slides_past_the_window(module_conn, conn, notices):
    ids = one(conn, "SELECT llm_generate_tokens('{1,2,3}', 100, 0, model_name => 'tiny', eos_token => -1)")
    assert len(ids) == 100
    assert notices == []
    # The window holds 32; when it is full its last 16 are kept. So token 33 of the stream follows the 16 before it.
    stream = [1, 2, 3, *ids]
    for end in (32, 33, 48, 49):
        start = 0 if end <= 32 else 17 if end <= 48 else 33
        (expected,) = one(
            conn,
            "SELECT llm_generate_tokens(%s::integer[], 1, 0, model_name => 'tiny', eos_token => -1)",
            stream[start:end],
        )
        assert stream[end] == expected, f"token {end}"


def test_a_prompt_longer_than_the_window_keeps_its_tail_and_says_so(conn, notices):
    prompt = list(range(1, 51))
    statement = "SELECT llm_generate_tokens(%s::integer[], 5, 0, model_name => 'tiny', eos_token => -1)"
    long = one(conn, statement, prompt)
    assert len(notices) == 1
    assert re.search("50 tokens.*32", notices[0])
    assert long == one(conn, statement, prompt[-32:])
    assert len(notices) == 1
    text = one(conn, "SELECT llm_generate(repeat('lower ', 60), 2, model_name => 'tiny')")
    assert text.startswith("lower " * 60)
    assert len(notices) == 2


def test_a_prompt_of_exactly_the_window_needs_no_notice(conn, notices):
    one(conn, "SELECT llm_generate_tokens(ARRAY(SELECT generate_series(1, 32)), 3, model_name => 'tiny')")
    assert notices == []


# ---- a prompt as ids


def test_prompt_ids_are_continued_as_the_text_that_they_encode(module_conn):
    """And ids that no text of a user has, of special tokens, as llm_generate_tokens continues them."""
    call = "(%s, 20, model_name => 'tiny', seed => 5, options => %s)"
    columns = "SELECT step, token_id, token, text, is_complete, logprob, finish_reason FROM llm_generate_stream"
    ids = one(module_conn, "SELECT llm_encode('low 日本', 'tiny')")
    by_ids = json.dumps({"prompt_ids": ids})
    text = one(module_conn, f"SELECT llm_generate{call}", "low 日本", None)
    assert one(module_conn, f"SELECT llm_generate{call}", None, by_ids) == text
    rows = module_conn.execute(columns + call, ["low 日本", None]).fetchall()
    assert module_conn.execute(columns + call, [None, by_ids]).fetchall() == rows
    end = one(module_conn, "SELECT token_id FROM llm_bpe_vocab WHERE model = 'tiny' AND token = '<|endoftext|>'")
    special = json.dumps({"prompt_ids": [end, *ids, end], "eos_token_id": -1})
    tokens = "SELECT llm_generate_tokens(%s, 20, model_name => 'tiny', seed => 5, eos_token => -1)"
    rows = module_conn.execute(columns + call, [None, special]).fetchall()
    assert [row[1] for row in rows] == one(module_conn, tokens, [end, *ids, end])
    assert rows[-1][3].startswith("<|endoftext|>low 日本<|endoftext|>")
    assert one(module_conn, f"SELECT llm_generate{call}", None, '{"top_k": 3}') is None


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"echo": False, "logprobs": True}], ids=str)
def test_prompt_ids_are_a_prompt_of_which_there_are_several_samples(module_conn, more):
    """In llm_generate_batch, as by llm_generate with their seeds; also ids that no text of a user has."""
    end = one(module_conn, "SELECT token_id FROM llm_bpe_vocab WHERE model = 'tiny' AND token = '<|endoftext|>'")
    ids = [end, *one(module_conn, "SELECT llm_encode('low 日本', 'tiny')")]
    batch = "SELECT n, sample, text FROM llm_generate_batch(%s, 20, model_name => 'tiny', seed => 5, options => %s)"
    found = module_conn.execute(batch, [None, json.dumps({"prompt_ids": ids, "n": 3} | more)]).fetchall()
    alone = json.dumps({"prompt_ids": ids} | {name: value for name, value in more.items() if name != "logprobs"})
    texts = [
        one(module_conn, "SELECT llm_generate(NULL, 20, model_name => 'tiny', seed => %s, options => %s)", 5 + k, alone)
        for k in range(3)
    ]
    assert found == [(1, k, text) for k, text in enumerate(texts, 1)]
    assert module_conn.execute(batch, [[], '{"n": 3}']).fetchall() == []
    assert module_conn.execute(batch, [None, '{"n": 3}']).fetchall() == []


# ---- prompt lookup


@pytest.mark.parametrize("function", ["llm_generate", "llm_generate_stream", "llm_generate_tokens"])
def test_without_prompt_lookup_a_pass_reads_one_token(conn, function):
    """With it some read more, where rows in company have the bits that they have alone."""
    conn.execute("SELECT llm_generate_tokens(ARRAY[1], 1, model_name => 'slow')")  # brings the package
    conn.execute("""
        CREATE FUNCTION pg_temp.watch() RETURNS bool LANGUAGE plpython3u AS $$
import importlib, sys
package = next(name for name in sys.modules if name.startswith('pg_gpt2_') and '.' not in name)
decode = importlib.import_module(package + '.generation.decode')
feed_all = decode.Decoder.feed_all
GD['read'] = []
def watched(decoder, ids):
    GD['read'].append(len(ids))
    return feed_all(decoder, ids)
decode.Decoder.feed_all = watched
model = importlib.import_module(package + '.server.storage.weights').load('slow')
return decode.Decoder(model.decoder_weights, model.config, 1).exact
        $$;
        CREATE FUNCTION pg_temp.read() RETURNS int[] LANGUAGE plpython3u AS $$
read, GD['read'] = GD['read'], []
return read
        $$""")
    exact = one(conn, "SELECT pg_temp.watch()")
    prompt = "ARRAY[1,2,3,4,1,2,3,4,1,2,3]" if function == "llm_generate_tokens" else "'abcdabcdabc'"
    read = {}
    for setting in ("on", "off"):
        conn.execute(f"SET pg_gpt2.prompt_lookup = {setting}")
        conn.execute(
            f"SELECT {function}({prompt}, 200, temperature => 0, eos_token => -1, model_name => 'slow')"
        ).fetchall()
        read[setting] = one(conn, "SELECT pg_temp.read()")
    assert read["off"] == [1] * 199
    assert (max(read["on"]) > 1) == exact


def test_prompt_lookup_changes_no_token(conn):
    query = "SELECT llm_generate_tokens(ARRAY[1,2,3,4,1,2,3,4,1,2,3], 100, temperature => 0, model_name => 'tiny')"
    found = []
    for setting in ("on", "off"):
        conn.execute(f"SET pg_gpt2.prompt_lookup = {setting}")
        found.append(conn.execute(query).fetchone()[0])
    assert found[0] == found[1]
    conn.execute("SET pg_gpt2.prompt_lookup = 'perhaps'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="prompt_lookup must be on or off"):
        conn.execute(query)
