-- How the Python gets into a session: the package is kept as rows, and the first call of a session loads it.

DO LANGUAGE plpython3u $$
def refuse(message, sqlstate, hint):
    named = type('pg_gpt2', (plpy.Error,), {'__module__': 'builtins'})  # PL/Python puts the class in front of the message
    refusal = named(message)
    refusal.sqlstate, refusal.hint = sqlstate, hint
    raise refusal

encoding = plpy.execute('SELECT pg_catalog.getdatabaseencoding() AS name')[0]['name']
if encoding != 'UTF8':
    refuse(f'a database with the encoding UTF8 is needed, and this one has {encoding}', '55000',
           "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0.")
schema = plpy.execute("""
    SELECT n.nspname FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_gpt2'""")[0]['nspname']
if set(schema) & set('\n\r\\\'"$'):  # bodies of functions have it in the text of their program
    refuse(f'the schema {schema!r} has a line break, a quote, a backslash or a dollar sign in its name', '22023',
           'CREATE EXTENSION pg_gpt2 SCHEMA another one.')
$$;

CREATE TABLE llm_module (
    name   text PRIMARY KEY,
    source text NOT NULL
);
COMMENT ON TABLE llm_module IS
    'The Python package behind every function, one row per module. Its code runs as the operating-system user of the '
    'server: only its owner may write it.';
COMMENT ON COLUMN llm_module.name IS 'Dotted name of the module.';
COMMENT ON COLUMN llm_module.source IS 'Source text of the module.';
GRANT SELECT ON llm_module TO PUBLIC;

CREATE FUNCTION llm_boot()
RETURNS void
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
sources = {row['name']: row['source'] for row in plpy.execute('SELECT name, source FROM @extschema@.llm_module')}
import sys
importer, limit = {}, sys.getrecursionlimit()
sys.setrecursionlimit(max(limit, 1000))  # another function may have left too little for an import
try:
    exec(sources['pg_gpt2.server.importer'], importer)
    GD['@package@'] = importer['import_package'](sources, '@package@', '@extschema@')
finally:
    sys.setrecursionlimit(limit)
$$;
COMMENT ON FUNCTION llm_boot IS
    'Load the Python package into this session. Every function calls it on first use; there is no need to call it.';
