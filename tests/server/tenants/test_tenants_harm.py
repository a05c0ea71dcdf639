"""What a tenant has saved is nobody's to damage: statements by hand of one with the level admin, who has guessed all ids."""

import psycopg
import pytest

from tests.server.test_hidden_models import names_a_hidden_block

SAVED = """
    SELECT (SELECT md5(string_agg(p::text, ',' ORDER BY name, token_id))
            FROM llm_checkpoint_part AS p WHERE checkpoint_id = {saved}),
        (SELECT md5(string_agg(b::text, ',' ORDER BY digest)) FROM llm_checkpoint_blob AS b WHERE model = 'south/poet'),
        (SELECT md5(c::text) FROM llm_checkpoint AS c WHERE id = {saved})
"""


@pytest.fixture
def shared(connect, places):
    """A checkpoint of the attacker's own that has the same blocks as one of the victim's, whose id this is."""
    owner, (there, _) = connect(), places
    owner.execute("UPDATE llm_checkpoint SET model = 'north/poet' WHERE id = %s", [there["infile"]])
    owner.execute(
        "INSERT INTO llm_checkpoint_part SELECT %s, name, token_id, shape, step, data, m, v FROM llm_checkpoint_part"
        " WHERE checkpoint_id = %s",
        [there["infile"], there["saved"]],
    )
    owner.execute(
        "INSERT INTO llm_checkpoint_blob SELECT 'north/poet', digest, data FROM llm_checkpoint_blob WHERE model = 'south/poet'"
    )
    yield there["saved"], there["infile"]
    owner.execute("DELETE FROM llm_checkpoint_part WHERE checkpoint_id = %s", [there["infile"]])
    owner.execute("DELETE FROM llm_checkpoint_blob WHERE model = 'north/poet'")
    owner.execute("UPDATE llm_checkpoint SET model = 'south/poet' WHERE id = %s", [there["infile"]])


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO llm_checkpoint_part VALUES ({saved}, 'x', 0, '{{1}}', 0, '', NULL, NULL)",
        "UPDATE llm_checkpoint_part SET checkpoint_id = {saved}, name = 'x' WHERE name = 'h.0.attn.c_attn.lora_A'",
        "DELETE FROM llm_checkpoint_part WHERE checkpoint_id = {saved}",
        "UPDATE llm_checkpoint SET note = 'x' WHERE id = {saved}",
        "UPDATE llm_checkpoint_blob SET data = 'x'",
        "UPDATE llm_checkpoint_blob SET model = 'south/poet', digest = sha256('x')"
        " WHERE digest = (SELECT digest FROM llm_checkpoint_blob LIMIT 1)",
        "UPDATE llm_checkpoint SET model = 'south/poet' WHERE id = {own}",
        "DELETE FROM llm_checkpoint_blob",
        "INSERT INTO llm_checkpoint_blob VALUES ('south/poet', sha256('what another will save'), 'something else')",
        "SELECT llm_checkpoint_drop({saved})",
        "SELECT llm_checkpoint_drop({own})",
    ],
)
def test_what_another_has_saved_is_nobody_s_to_damage(connect, shared, statement):
    """Neither its rows nor the blocks, those among them that the attacker's own checkpoint has as well."""
    conn, (saved, own) = connect(), shared
    before = conn.execute(SAVED.format(saved=saved)).fetchone()
    with conn.transaction(force_rollback=True):
        try:
            with conn.transaction():
                conn.execute("SET LOCAL ROLE north")
                assert conn.execute("SELECT count(*) FROM llm_checkpoint_blob").fetchone()[0] > 0
                conn.execute(statement.format(saved=saved, own=own))
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
            pass
        conn.execute("RESET ROLE")
        assert conn.execute(SAVED.format(saved=saved)).fetchone() == before


def test_the_digest_of_another_s_block_opens_nothing(connect, places):
    thief = connect(options="-c role=north")
    thief.execute("SELECT llm_adapter_create('north/thief', 'tiny', 2, 4, '{attn.c_attn,mlp.c_fc}', seed => 3)")
    names_a_hidden_block(connect(), thief, "north/thief", "h.0.attn.c_attn.lora_A")
    thief.execute("SELECT llm_drop_model('north/thief')")
