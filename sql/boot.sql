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
    name    text PRIMARY KEY,
    source  text NOT NULL,
    digest  text GENERATED ALWAYS AS (md5(source)) STORED,
    code    bytea,
    code_of text
);
ALTER TABLE llm_module ALTER code SET STORAGE EXTERNAL;  -- unpacking it would take longer than reading it
COMMENT ON TABLE llm_module IS
    'The Python package behind every function, one row per module. Its code runs as the operating-system user of the '
    'server: only its owner may write it.';
COMMENT ON COLUMN llm_module.name IS 'Dotted name of the module.';
COMMENT ON COLUMN llm_module.source IS 'Source text of the module.';
COMMENT ON COLUMN llm_module.digest IS 'MD5 of the source.';
COMMENT ON COLUMN llm_module.code IS
    'What Python made of the source (llm_compile). A session compiles the source itself where there is none for it.';
COMMENT ON COLUMN llm_module.code_of IS
    'Of which source (its MD5), and by which Python: the code is not used for another.';
GRANT SELECT ON llm_module TO PUBLIC;

CREATE FUNCTION llm_boot()
RETURNS void
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
import sys
importer, limit = {}, sys.getrecursionlimit()
sys.setrecursionlimit(max(limit, 1000))  # another function may have left too little for an import
try:
    exec(plpy.execute('SELECT source FROM @extschema@.llm_module WHERE name = $n$pg_gpt2.server.importer$n$')[0]['source'], importer)
    GD['@package@'] = importer['import_package']('@package@', '@extschema@')
finally:
    sys.setrecursionlimit(limit)
$$;
COMMENT ON FUNCTION llm_boot IS
    'Load the Python package into this session. Every function calls it on first use; there is no need to call it.';

CREATE FUNCTION llm_compile()
RETURNS integer
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
importer = {}
exec(plpy.execute('SELECT source FROM @extschema@.llm_module WHERE name = $n$pg_gpt2.server.importer$n$')[0]['source'], importer)
return importer['compile_package']('@package@', '@extschema@')
$$;
COMMENT ON FUNCTION llm_compile IS
    'Keep what this server''s Python makes of the package''s sources in llm_module, so that no session has to compile them; how '
    'many modules there are. CREATE EXTENSION does so. Do it again where the server has got another Python, which llm_doctor '
    'tells: the first call of a session takes a tenth of a second longer until then. For the owner of the extension.';
