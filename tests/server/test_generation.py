"""What llm_generate and its family promise beside the numbers: seeds, stopping, windows, characters, and rows that stream."""

import json
import os
import random
import re
import subprocess
import time

import numpy as np
import psycopg
import pytest

from tests.server import psql

CORPUS = "low lower lowest newer wider naïve 日本語 🙂🙃 "


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe(%s, 280, 'tiny')", [f"VALUES ('{CORPUS}')"])
    module_conn.execute("SELECT llm_init_model('tiny', 2, 2, 16, 32, seed => 1)")
    # Slow enough that a hundred tokens can be told from one; byte tokens only.
    module_conn.execute(
        "INSERT INTO llm_bpe_vocab SELECT 'slow', token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'tiny'"
    )
    module_conn.execute("SELECT llm_init_model('slow', 4, 4, 256, 1024, 280, seed => 1)")


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


# ---- stopping


def generated(conn, seed, **options):
    """(text, rows of the stream) of a completion without prompt."""
    arguments = "".join(f", {name} => %({name})s" for name in options)
    call = f"('low', 60, topk => 0, topp => 1, eos_token => -1, model_name => 'tiny', seed => {seed}, echo => false{arguments})"
    text = conn.execute(f"SELECT llm_generate{call}", options).fetchone()[0]
    rows = conn.execute(
        f"SELECT step, token_id, token, text, is_complete, finish_reason FROM llm_generate_stream{call}", options
    )
    return text, rows.fetchall()


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_string_ends_generation_before_it_also_across_tokens(module_conn, seed):
    full, rows = generated(module_conn, seed)
    ends = [len(row[3]) for row in rows]
    for start in range(3, len(full) - 4, 5):
        for size in (1, 2, 4):
            stop = full[start : start + size]
            if "\ufffd" in stop or "\0" in stop:
                continue
            text, streamed = generated(module_conn, seed, stop=[stop, "not there"])
            place = full.index(stop)
            assert text == full[:place]
            assert streamed[-1][3:] == (text, True, "stop")
            # It stops with the token that completes the stop string, not later.
            assert streamed[-1][0] <= next(step for step, end in enumerate(ends, 1) if end >= place + size)
            for *_, shown, _, _ in streamed:
                assert text.startswith(shown), "no part of a stop string is ever shown"


def test_a_stop_string_that_straddles_tokens_is_among_those_tested(module_conn):
    _, rows = generated(module_conn, 0)
    assert any(len(row[2]) == 1 for row in rows), "most tokens are single characters, so stops of 4 straddle"


def test_a_stop_string_in_the_prompt_does_not_stop(module_conn):
    call = "llm_generate('low lower', 5, model_name => 'tiny', seed => 1, stop => '{low l}', eos_token => -1)"
    text = one(module_conn, f"SELECT {call}")
    assert text.startswith("low lower")
    assert len(text) > len("low lower")


def test_the_end_of_text_token_ends_and_is_not_shown(module_conn):
    full, rows = generated(module_conn, 1)
    third = rows[2][1]
    arguments = f"('low', 60, topk => 0, topp => 1, eos_token => {third}, model_name => 'tiny', seed => 1)"
    text = one(module_conn, f"SELECT llm_generate{arguments}")
    streamed = module_conn.execute(
        f"SELECT step, is_complete, finish_reason, text FROM llm_generate_stream{arguments}"
    ).fetchall()
    place = next(n for n, row in enumerate(rows) if row[1] == third)
    assert [row[0] for row in streamed] == list(range(1, place + 2))
    assert streamed[-1] == (place + 1, True, "stop", text)
    assert full.startswith(text[3:].rstrip("\ufffd"))


# ---- characters


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_never_breaks_a_character(module_conn, seed):
    """Draws from random weights are mostly bytes of unfinished characters."""
    full, rows = generated(module_conn, seed)
    shown = ""
    for step, _, _, text, complete, _ in rows:
        assert text.startswith(shown), f"step {step} takes back what was shown"
        shown = text
        assert complete == (step == len(rows))
    assert shown == full
    ids = [row[1] for row in rows]
    raw = one(module_conn, "SELECT llm_decode_bytes(%s::integer[], 'tiny')", ids)
    assert full == raw.decode("utf-8", "replace").replace("\0", "\ufffd")


def test_a_character_of_several_tokens_appears_whole(module_conn):
    """A model whose every next token is fixed spells an emoji byte by byte: nothing is shown until it is complete."""
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_train_bpe($$VALUES ('')$$, 257, 'spell')")
        ids = one(module_conn, "SELECT llm_encode('a🙂é', 'spell')")
        assert len(ids) == 7
        spell_out(module_conn, "spell", ids)
        rows = module_conn.execute(
            "SELECT text FROM llm_generate_stream('a', 6, 0, model_name => 'spell', echo => false)"
        ).fetchall()
        assert [text for (text,) in rows] == ["", "", "", "🙂", "🙂", "🙂é"]
        cut = module_conn.execute(
            "SELECT text FROM llm_generate_stream('a', 2, 0, model_name => 'spell', echo => false)"
        ).fetchall()
        assert [text for (text,) in cut] == ["", "\ufffd"]


def spell_out(conn: psycopg.Connection, model: str, ids: list[int]) -> None:
    """Make `model`, which continues ids[0] with ids[1], ids[2], ...

    Position embeddings alone do that: wpe[i] points at the row of wte of ids[i + 1], and the blocks add nothing.
    """
    width, positions = 16, 8
    vocab = 257
    rng = np.random.default_rng(0)
    wte = np.zeros((vocab, width), "<f4")
    wpe = np.zeros((positions, width), "<f4")
    for place, token in enumerate(ids[1:]):
        direction = rng.standard_normal(width)
        direction -= direction.mean()
        wte[token] = direction
        wpe[place] = 100 * direction
    conn.execute("SELECT llm_init_model(%s, 1, 1, %s, %s)", [model, width, positions])
    for name, data in (("wte", wte), ("wpe", wpe)):
        conn.execute("UPDATE llm_param SET data = %s WHERE model = %s AND name = %s", [data.tobytes(), model, name])
    conn.execute(
        "UPDATE llm_param SET data = decode(repeat('00', octet_length(data)), 'hex')"
        " WHERE model = %s AND name LIKE '%%c_proj.weight'",
        [model],
    )


def test_nul_is_replaced_and_nothing_cut(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("SELECT llm_train_bpe($$VALUES ('')$$, 257, 'spell')")
        nul = one(module_conn, "SELECT token_id FROM llm_bpe_vocab WHERE model = 'spell' AND bytes = '\\x00'")
        a, b, c = one(module_conn, "SELECT llm_encode('abc', 'spell')")
        spell_out(module_conn, "spell", [a, nul, b, c])
        assert one(module_conn, "SELECT llm_generate('a', 3, 0, model_name => 'spell')") == "a\ufffdbc"
        rows = module_conn.execute(
            "SELECT token, text FROM llm_generate_stream('a', 3, 0, model_name => 'spell')"
        ).fetchall()
        assert rows == [("\ufffd", "a\ufffd"), ("b", "a\ufffdb"), ("c", "a\ufffdbc")]
        assert one(module_conn, "SELECT token FROM llm_next_token('a', 1, model_name => 'spell')") == "\ufffd"
        assert (
            one(module_conn, "SELECT text FROM llm_generate_batch('{a}', 3, 0, model_name => 'spell')") == "a\ufffdbc"
        )
        assert one(module_conn, "SELECT text FROM llm_beam_search('a', 1, 3, model_name => 'spell')") == "\ufffdbc"


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


# ---- streaming

STREAM = "SELECT (llm_generate_stream('low', {n}, model_name => 'slow', seed => 1, eos_token => -1)).*"


def test_rows_arrive_as_they_are_computed(conn):
    one(conn, "SELECT llm_generate('low', 1, model_name => 'slow')")  # loads the model
    with conn.transaction():
        cursor = conn.cursor("stream")
        cursor.itersize = 1
        start = time.monotonic()
        cursor.execute(STREAM.format(n=150))
        arrivals = [time.monotonic() - start for _ in cursor]
    assert len(arrivals) == 150
    assert arrivals[0] < arrivals[-1] / 5
    assert arrivals[74] < 0.8 * arrivals[-1]


def test_psql_with_fetch_count_shows_all_rows_and_before_17_as_they_come(dsn):
    command = [psql.program(), "-XAtq", "-d", dsn, "-v", "FETCH_COUNT=1", "-c", STREAM.format(n=150)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        arrivals = [time.monotonic() for line in process.stdout if re.match(r"\d+\|", line)]
    assert process.returncode == 0
    assert len(arrivals) >= 150  # a text with line breaks in it may look like more
    if psql.major_version() >= 17:
        return  # it leaves the rows in the server's buffer; docs/psqlrc has what streams there as well
    assert arrivals[75] - arrivals[0] > 0.2 * (arrivals[-1] - arrivals[0]) > 0.01


def test_a_cursor_may_be_closed_early(conn):
    one(conn, "SELECT llm_generate('low', 1, model_name => 'slow')")
    started = time.monotonic()
    with conn.transaction():
        cursor = conn.cursor("stream")
        cursor.itersize = 1
        cursor.execute(STREAM.format(n=100000))
        assert [next(cursor)[0] for _ in range(3)] == [1, 2, 3]
        cursor.close()
        assert one(conn, "SELECT length(llm_generate('low', 3, model_name => 'tiny', seed => 1)) > 0")
    assert one(conn, "SELECT 1") == 1
    assert time.monotonic() - started < 60, "a hundred thousand tokens were not computed"


def test_limit_ends_a_stream(conn):
    assert len(conn.execute(STREAM.format(n=100000) + " LIMIT 2").fetchall()) == 2


def test_rollback_ends_a_stream(conn):
    conn.execute("BEGIN")
    conn.execute(f"DECLARE c CURSOR FOR {STREAM.format(n=1000)}")
    conn.execute("FETCH 2 FROM c")
    conn.execute("ROLLBACK")
    assert one(conn, "SELECT llm_generate('low', 1, model_name => 'slow', seed => 1)")


def test_streams_interleave(conn):
    call = "SELECT (llm_generate_stream('low', 20, model_name => 'tiny', seed => {seed}, eos_token => -1)).text"
    alone = [conn.execute(call.format(seed=seed)).fetchall() for seed in (1, 2)]
    conn.execute("BEGIN READ ONLY")
    for seed in (1, 2):
        conn.execute(f"DECLARE c{seed} CURSOR FOR {call.format(seed=seed)}")
    together: list[list] = [[], []]
    for _ in range(20):
        for seed in (1, 2):
            together[seed - 1] += conn.execute(f"FETCH c{seed}").fetchall()
            conn.execute("SELECT llm_generate('wider', 2, model_name => 'tiny', seed => 9)")
    conn.execute("COMMIT")
    assert together == alone


def test_a_stream_keeps_the_weights_it_began_with(conn):
    call = "SELECT (llm_generate_stream('low', 10, model_name => 'tiny', seed => 1, eos_token => -1)).text"
    alone = conn.execute(call).fetchall()
    with conn.transaction(force_rollback=True):
        conn.execute(f"DECLARE c CURSOR FOR {call}")
        rows = conn.execute("FETCH 3 FROM c").fetchall()
        conn.execute(
            "UPDATE llm_param SET data = decode(repeat('00', octet_length(data)), 'hex') WHERE model = 'tiny' AND name = 'wte'"
        )
        conn.execute("DELETE FROM llm_bpe_merges WHERE model = 'tiny'")
        rows += conn.execute("FETCH ALL FROM c").fetchall()
    assert rows == alone


def test_everything_that_reads_works_in_a_read_only_transaction(conn):
    conn.execute("BEGIN READ ONLY")
    for call in (
        "llm_generate('low', 3, model_name => 'tiny')",
        "llm_generate_stream('low', 3, model_name => 'tiny')",
        "llm_encode('low', 'tiny')",
        "llm_export_safetensors('tiny')",
    ):
        conn.execute(f"SELECT {call}")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute("SELECT llm_init_model('x', 1, 1, 8, 8, 8)")
    conn.execute("ROLLBACK")


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
