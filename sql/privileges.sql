-- Who may call what. Functions run with the caller's rights, so reading a model needs SELECT on its tables in any case;
-- what makes, changes or removes models, or touches files of the server, is not even callable by PUBLIC.

REVOKE EXECUTE ON FUNCTION
    llm_compile,
    llm_init_model,
    llm_copy_model,
    llm_drop_model,
    llm_adapter_create,
    llm_adapter_merge,
    llm_train_bpe,
    pg_llm_load_bpe_vocab,
    pg_llm_load_bpe_merges,
    pg_llm_import_safetensors,
    pg_llm_import_npz,
    llm_import_safetensors,
    llm_import_safetensors_sent,
    llm_import_begin,
    pg_llm_export_safetensors,
    pg_llm_export_npz,
    llm_share_param,
    llm_unshare_param,
    llm_checkpoint_save,
    llm_checkpoint_attach,
    llm_checkpoint_load,
    llm_checkpoint_drop,
    llm_checkpoint_prune,
    llm_log_prune,
    llm_dataset_load,
    llm_dataset_load_pairs,
    llm_accumulate_grads,
    llm_train_step,
    llm_train_step_sent,
    llm_train,
    llm_train_stop,
    llm_publish,
    llm_worker_begin,
    llm_worker_weights,
    llm_worker_shard,
    llm_worker_gradients,
    llm_grant_usage
FROM PUBLIC;

REVOKE EXECUTE ON PROCEDURE
    llm_train_run
FROM PUBLIC;

-- A view reads with its owner's rights, and so past the row-level security that is meant for whoever asks. Since PostgreSQL 15 it
-- can be told to read with those of its caller; on 14 it shows nothing to a role from which a policy may hide rows of ours.
DO LANGUAGE plpython3u $$
members = plpy.execute("""
    SELECT c.oid::regclass::text AS name, c.relkind AS kind, pg_get_viewdef(c.oid) AS definition
    FROM pg_class AS c JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    WHERE e.extname = 'pg_gpt2' AND c.relkind IN ('r', 'v') ORDER BY c.oid
""")
tables = ', '.join(plpy.quote_literal(row['name']) + '::regclass' for row in members if row['kind'] == 'r')
unfiltered = f'NOT EXISTS (SELECT FROM unnest(ARRAY[{tables}]) AS t WHERE row_security_active(t))'
for view in (row for row in members if row['kind'] == 'v'):
    if int(plpy.execute("SHOW server_version_num")[0]['server_version_num']) >= 150000:
        plpy.execute(f"ALTER VIEW {view['name']} SET (security_invoker = true)")
    else:
        definition = view['definition'].rstrip(';')
        plpy.execute(f"CREATE OR REPLACE VIEW {view['name']} AS SELECT * FROM ({definition}) AS v WHERE {unfiltered}")
$$;
