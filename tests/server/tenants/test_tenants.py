"""Another's adapter is as one that was never made: by its name, in rows, errors, estimates and locks."""

import re

import psycopg
import pytest
from psycopg import sql

from tests.server.tenants.victim import warm
from tests.server.test_hidden_models import CASES, NO_ROWS_OF_MODELS, OWN_TAPE, ROWS, SAME_FOR_ALL, VIEWS, outcome

# What adapters are made of and made into, and what is written without the functions.
ATTACKS = [
    "SELECT llm_adapter_create('north/of_it', '{m}')",
    "SELECT llm_adapter_create('{m}', 'tiny')",
    "SELECT llm_adapter_merge('{m}', 'north/merged')",
    "SELECT llm_adapter_merge('north/poet', '{m}')",
    "SELECT llm_share_param('{m}', 'h.0.attn.c_attn.lora_A', NULL, 'north/poet')",
    "SELECT llm_share_param('north/poet', 'h.0.attn.c_attn.lora_A', NULL, '{m}')",
    "SELECT llm_unshare_param('{m}', 'wte')",
    "INSERT INTO llm_adapter VALUES ('north/of_it', '{m}', 2, 4, '{{attn.c_attn}}', 0, NULL)",
    "INSERT INTO llm_adapter VALUES ('{m}', 'tiny', 2, 4, '{{attn.c_attn}}', 0, NULL)",
    "UPDATE llm_adapter SET base = '{m}' WHERE model = 'north/poet' RETURNING 1",
    "UPDATE llm_adapter SET alpha = 5 WHERE model = '{m}' RETURNING 1",
    "UPDATE llm_param SET model = '{m}' WHERE model = 'north/poet' RETURNING 1",
    "UPDATE llm_param SET data = data WHERE model = '{m}' RETURNING 1",
    "DELETE FROM llm_param WHERE model = '{m}' RETURNING 1",
    "DELETE FROM llm_adapter WHERE model = '{m}' RETURNING 1",
    "INSERT INTO llm_param_share VALUES ('{m}', 'h.0.attn.c_attn.lora_A', 0, 'north/poet', 'h.0.attn.c_attn.lora_A', 0)",
    "INSERT INTO llm_param_share VALUES ('tiny', 'wpe', 0, '{m}', 'h.0.attn.c_attn.lora_A', 0)",
    "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('{m}', 1, 2, 8, 16, 265)",
    "INSERT INTO llm_model_config (model, n_layer, n_head, d_model, n_positions, vocab) VALUES ('{m}', 1, 2, 8, 16, 265)"
    " ON CONFLICT DO NOTHING",
    "INSERT INTO llm_dataset (model, split, tokens, target) VALUES ('{m}', 'train', '{{1}}', '{{2}}')",
    "INSERT INTO llm_run (model) VALUES ('{m}')",
    "SELECT llm_generate('low', 3, seed => 1) FROM set_config('pg_gpt2.model', '{m}', true)",
]
BASES_ONLY = {"llm_bpe_vocab", "llm_bpe_merges"}  # no adapter has rows of these
ALL = sorted({statement: name for name, statement in CASES}.items()) + [(attack, "") for attack in ATTACKS]


@pytest.mark.parametrize(("statement", "function"), ALL)
def test_anothers_adapter_is_as_one_that_was_never_made(session, places, statement, function):
    """By name, in all functions and by SQL: the same rows or the same error, whatever the session has in memory."""
    hidden, absent = places
    hidden = hidden | {"handle": warm(session)}
    assert outcome(session, statement, hidden) == outcome(session, statement, absent)


def test_the_victim_can_do_what_the_attacker_tries(session, places):
    """So that it is the policies that keep the attacker away, not a mistake in the statements."""
    hidden, absent = places
    hidden = hidden | {"handle": warm(session)}
    session.execute("RESET ROLE")
    for statement, function in ALL:
        told = statement.startswith("SELECT") and statement.format(**hidden) != statement.format(**absent)
        if told and "-adapter" not in statement and function not in SAME_FOR_ALL | OWN_TAPE | {"llm_adapter_create"}:
            assert outcome(session, statement, hidden) != outcome(session, statement, absent), statement


@pytest.mark.parametrize(
    "relation", sorted(ROWS.keys() - {"llm_bpe_vocab", "llm_bpe_merges"})
)  # an adapter has none of these
def test_no_row_of_anothers_adapter_is_seen(session, places, relation):
    warm(session)
    session.execute("RESET ROLE")
    condition = (ROWS | {"llm_adapter": "model = 'south/poet'"})[relation]
    keys = "ctid" if relation not in VIEWS else sql.Identifier(relation).as_string(None)
    found = session.execute(f"SELECT {keys}::text FROM {relation} WHERE {condition}").fetchall()
    assert found, "there are rows to be hidden"
    session.execute("SET ROLE north")
    assert not set(found) & set(session.execute(f"SELECT {keys}::text FROM {relation}").fetchall())


def test_its_name_is_nowhere(session, places):
    """In the doctor's words, the caches' status, any row, or the errors about the base that it shares."""
    warm(session)
    places = ("llm_doctor()", "llm_cache_status()", "llm_checkpoint_list()", *ROWS)
    for place in (*places, *NO_ROWS_OF_MODELS - {"llm_module"}):
        assert session.execute(f"SELECT count(*) FROM {place} AS t WHERE t::text ~ 'south'").fetchone() == (0,), place
    assert {model for (model,) in session.execute("SELECT model FROM llm_cache_status()")} <= {"tiny", "north/poet"}
    with pytest.raises(
        psycopg.errors.DependentObjectsStillExist, match='"tiny" is the base of "north/poet"\n'
    ) as error:
        session.execute("SELECT llm_drop_model('tiny')")
    assert "south" not in str(error.value.diag.message_hint)


def test_the_session_tape_is_its_maker_s(session, places):
    """Values of the victim's adapter are on the tape that the session goes on with."""
    handle = warm(session)
    for query in ("SELECT * FROM llm_tensor_rt WHERE id = %s", "SELECT * FROM llm_tape WHERE output = %s"):
        assert session.execute(query, [handle]).fetchall() == [], query
    with pytest.raises(psycopg.errors.UndefinedObject, match="does not exist"):
        session.execute("SELECT llm_value(%s)", [handle])


def test_estimates_do_not_tell_that_a_name_is_there(connect, places):
    """EXPLAIN shows what the planner expects of a name that somebody guesses; it has no statistics of names."""
    owner = connect()
    with owner.transaction(force_rollback=True):
        owner.execute("INSERT INTO llm_dataset (model, split, tokens, target)"
                      " SELECT 'south/poet', 'train', '{1}', '{2}' FROM generate_series(1, 2000)")  # fmt: skip
        owner.execute("INSERT INTO llm_param SELECT 'south/poet', 'x' || i, 0, shape, data FROM generate_series(1, 1000) AS i,"
                      " (SELECT shape, data FROM llm_param LIMIT 1) AS p")  # fmt: skip
        owner.execute("ANALYZE")
        columns = owner.execute(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute WHERE attrelid::regclass::text IN ({}) AND atttypid"
            " = 'text'::regtype".format(", ".join(f"'{name}'" for name in ROWS.keys() - VIEWS - BASES_ONLY))
        ).fetchall()
        assert len(columns) > 12
        owner.execute("SET LOCAL ROLE north")
        for table, column in columns:
            for operator in ("=", "<", ">"):
                plans = [
                    [
                        line.replace(name, "<m>")
                        for (line,) in owner.execute(f"EXPLAIN SELECT FROM {table} WHERE {column} {operator} '{name}'")
                    ]
                    for name in ("south/poet", "south/none", "nobody/none")
                ]
                assert plans[0] == plans[1] == plans[2], (table, column, operator)


WAYS = ("enable_indexscan, enable_bitmapscan", "enable_seqscan, enable_bitmapscan", "enable_seqscan, enable_indexscan")


def told(conn: psycopg.Connection, table: str, condition: str, off: str) -> tuple:
    """What EXPLAIN ANALYZE and the statistics say of hidden rows that a condition is true of, with some plans switched off."""
    statistics = f"SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = '{table}'::regclass"
    with conn.transaction(force_rollback=True):
        for setting in off.split(", "):
            conn.execute(f"SET LOCAL {setting} = off")
        conn.execute("SET LOCAL ROLE north")
        before = conn.execute(statistics).fetchone()
        plan = conn.execute(
            f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT FROM {table} WHERE {condition}"
        )
        removed = [line for (line,) in plan if "actual" in line or "Removed" in line]
        read = conn.execute(statistics).fetchone()
        return removed, *(y - x for x, y in zip(before, read, strict=True))


RANGES = [
    "{c} > '{m}' AND {c} < '{m}~'",
    "{c} BETWEEN '{m}' AND '{m}~'",
    "{c} ^@ '{m}'",
    "starts_with({c}, '{m}')",
    "{c} LIKE '{m}%'",
    "{c} ~>=~ '{m}' AND {c} ~<~ '{m}~'",
    "{c} >= '{m}'::name AND {c} < '{m}~'::name",
    "{c} >= ALL ('{{{m}}}') AND {c} < ANY ('{{{m}~}}')",
    "ROW({c}, 1) > ROW('{m}', 0) AND ROW({c}, 1) < ROW('{m}~', 0)",
]


@pytest.mark.parametrize("condition", RANGES)
def test_a_hidden_name_is_not_read_letter_by_letter(connect, places, condition):
    """EXPLAIN ANALYZE and the statistics say the same of the first letters of a hidden name and of others."""
    owner = connect()
    for table, column in (("llm_param", "model"), ("llm_param_share", "target_model"), ("llm_run", "model")):
        for off in WAYS:
            hidden, absent = (
                told(owner, table, condition.format(c=column, m=name), off) for name in ("south/po", "south/qo")
            )
            assert hidden == absent, (table, off)


def test_a_whole_name_that_is_guessed_is_told(connect, places):
    """As the page says; were it not, the page and docs/promises.md could promise more."""
    hidden, absent = (told(connect(), "llm_param", f"model = 'south/{name}'", WAYS[1]) for name in ("poet", "none"))
    assert hidden != absent


# Functions of the level train, which a tenant needs, while the victim's adapter is in training.
TRAINING = [
    (name, statement)
    for name, statement in CASES
    if re.match("llm_(train|dataset|accumulate|generate|loss|evaluate|backprop)", name) and name != "llm_train_bpe"
]


def test_a_tenant_does_not_wait_for_another_s_training(connect, places):
    """Nor is it told that somebody trains: what is locked is not asked for before the caller is seen to see it."""
    hidden, absent = places
    victim, attacker = connect(), connect()
    attacker.execute("SET lock_timeout = '5s'; SET ROLE north")
    heard = []
    attacker.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    with victim.transaction(force_rollback=True):
        victim.execute("SET LOCAL ROLE south; SELECT llm_train('south/poet', 1, batch_size => 2)")
        for name, statement in TRAINING:
            heard.clear()
            if name not in OWN_TAPE:
                expected = outcome(attacker, statement, absent)
                assert outcome(attacker, statement, hidden) == expected, statement
            assert not any("lock" in message for message in heard), statement
