"""The first call of a session: what it does not load, read or try out, because it does not need it."""

import psycopg
import pytest

GENERATE = "SELECT llm_generate_tokens('{1,2}', 12, temperature => 0, model_name => 'big', seed => 1, eos_token => -1"
IDS = GENERATE + ")"
TOKENIZERS = "SELECT count(*) FROM llm_cache_status() WHERE kind = 'tokenizer'"
PROBE = """
CREATE FUNCTION pg_temp.found() RETURNS text[] LANGUAGE plpython3u AS $$
import gc, sys
import numpy
found = {name.partition('.')[2]: module for name, module in sys.modules.items() if name.startswith('pg_gpt2_')}
tried = ('fast.panels', '_is_usable'), ('fast.attend_blocks', 'is_usable')
if 'numpy.random' in sys.modules and not numpy.__version__.startswith('1.'): # NumPy 1 loads it itself
    found['numpy.random'] = None
return [*found, *(name for place, name in tried if getattr(found[place], name).cache_info().misses), str(gc.isenabled())]
$$
"""


@pytest.fixture(scope="module", autouse=True)
def big(module_conn: psycopg.Connection) -> None:
    """A model large enough to be shared, most of whose ids are no tokens of its vocabulary."""
    module_conn.execute("SELECT llm_train_bpe('SELECT ''low lower lowest''', 260, 'big')")
    module_conn.execute("SELECT llm_init_model('big', 2, 4, 256, 64, 4096, seed => 1)")


def one(conn: psycopg.Connection, query: str) -> object:
    return conn.execute(query).fetchone()[0]


def test_it_loads_and_tries_out_only_what_it_needs(connect):
    """Also it finds out from the file whether panels are of use, and leaves Python's collection of garbage on."""
    one(connect(), IDS)  # writes the file
    conn = connect()
    one(conn, IDS.replace("temperature => 0", "temperature => 1"))
    conn.execute(PROBE)
    found = set(one(conn, "SELECT pg_temp.found()"))
    assert "server.api.generation" in found
    assert "True" in found
    unneeded = {"generation.constraints.json_schema", "generation.beam", "server.tape.recording", "server.api.pieces"}
    assert found & {*unneeded, "numpy.random", "_is_usable", "is_usable"} == set()


def test_ids_are_generated_without_reading_the_vocabulary_but_only_its_tokens(connect):
    """So it is at whatever version of the vocabulary a statement sees."""
    conn = connect()
    ids = one(conn, IDS)
    assert max(ids) < 260
    assert one(conn, TOKENIZERS) == 0
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM llm_bpe_vocab WHERE model = 'big' AND token_id = %s", [ids[0]])
        assert ids[0] not in one(conn, IDS)
    assert one(conn, IDS) == ids
    assert one(conn, TOKENIZERS) == 0
    assert one(conn, GENERATE + ", stop => '{never}')") == ids
    assert one(conn, TOKENIZERS) == 1
