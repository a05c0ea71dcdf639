"""A tenant's adapter, with all that is made of one; the policies that hide it; and what its tenant has just done in a session."""

import re
from pathlib import Path

import psycopg

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "tenants.md"
POLICIES = "".join(re.findall(r"```sql\n(DO .*?)```", PAGE.read_text(), re.DOTALL))

PREPARE = """
    SET client_min_messages = warning;
    SELECT setval('llm_run_run_id_seq', 51001), setval('llm_checkpoint_id_seq', 62001); -- ids that nothing else has
    SELECT setval('llm_tape_tape_id_seq', 73001), setval('llm_handle_seq', 840001);
    SELECT llm_train_bpe($$VALUES ('low lower lowest newer wider')$$, 265, 'tiny');
    SELECT llm_init_model('tiny', 1, 2, 8, 1024, seed => 1);
    SELECT llm_adapter_create('south/poet', 'tiny', 2, 4, '{attn.c_attn,mlp.c_fc}');
    SELECT llm_dataset_load($$SELECT repeat('low lower ', 40)$$, 'south/poet', 8);
    SELECT llm_train('south/poet', 2, batch_size => 2, audit => 'full', lr_max => 0.1);
    SELECT llm_checkpoint_save('south/poet');
    SELECT llm_checkpoint_save('south/poet', file_path => '{folder}/hidden.npz');
    SELECT llm_checkpoint_load('south/poet', (SELECT min(id) FROM llm_checkpoint));
    SELECT llm_train('south/poet', 1, batch_size => 2, audit => 'full', lr_max => 0.1);
    SELECT llm_adapter_create('north/poet', 'tiny', seed => 2);
    SELECT llm_checkpoint_save('north/poet', file_path => '{folder}/elsewhere.npz');
    SELECT pg_llm_export_safetensors('{folder}/shown.safetensors', 'tiny');
    SELECT pg_llm_export_npz('{folder}/shown.npz', 'tiny');
    DELETE FROM llm_checkpoint WHERE model = 'north/poet';
    SELECT llm_grant_usage('north', 'admin'), llm_grant_usage('south', 'train');
    GRANT pg_read_server_files, pg_write_server_files TO north;
    REVOKE TRUNCATE ON ALL TABLES IN SCHEMA public FROM north;
"""


def warm(conn: psycopg.Connection) -> int:
    """As the victim: weights, tokenizer, texts read, training state and the session's tape are those of its adapter. A handle."""
    conn.execute("SET ROLE south")
    conn.execute("SELECT llm_generate('low', 2, model_name => 'south/poet')")
    conn.execute("BEGIN; SELECT llm_train_step('south/poet'); ROLLBACK")
    conn.execute("SET pg_gpt2.autograd = on; SELECT llm_loss('south/poet', '{1,2}', '{2,3}'); RESET pg_gpt2.autograd")
    (handle,) = conn.execute("SELECT max(id) FROM llm_tensor_rt").fetchone()
    conn.execute("SET ROLE north")
    return handle
