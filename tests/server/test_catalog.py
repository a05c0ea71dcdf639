"""What the catalog says of every object of the extension: the promises that hold for all of them alike."""

import ast
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pg_gpt2.generation.options import all_options
from pg_gpt2.training.options import all_options as training_options

MEMBERS = """
    SELECT p.oid::regprocedure::text AS name, l.lanname, p.proparallel, p.prosecdef, p.proconfig, p.prosrc, p.prokind,
           p.prosqlbody IS NOT NULL AS parsed,
           obj_description(p.oid, 'pg_proc') AS comment, p.prorettype
    FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid JOIN pg_language l ON l.oid = p.prolang
    WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    ORDER BY 1
"""
GOLDEN = Path(__file__).parents[1] / "golden"
WRAPPER_LINES = 5  # of SQL; of PL/Python boot, of four, and call
LONGER = ("llm_boot()",)  # loads the package, in an interpreter that others may have set up oddly


@pytest.fixture(scope="module")
def functions(module_conn: psycopg.Connection) -> list[dict]:
    with module_conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(MEMBERS).fetchall()


def offenders(functions: list[dict], wrong: Callable[[dict], bool]) -> list[str]:
    assert functions
    return [function["name"] for function in functions if wrong(function)]


def test_no_object_is_written_in_c(functions):
    assert not offenders(functions, lambda f: f["lanname"] not in ("plpython3u", "sql"))


def test_every_function_is_parallel_unsafe_but_one_in_plain_sql_and_its_error(functions):
    safe = offenders(functions, lambda f: f["proparallel"] != "u")
    assert safe == ["llm_cosine(real[],real[])", "llm_cosine_sent(integer,integer,integer)"]


def test_every_function_is_security_invoker_but_for_one_trigger_that_nobody_may_call(functions, module_conn):
    assert offenders(functions, lambda f: f["prosecdef"]) == ["llm_bpe_changed()"]
    (callable_,) = module_conn.execute(
        "SELECT has_function_privilege('public', 'llm_bpe_changed()', 'EXECUTE')"
    ).fetchone()
    assert not callable_


def test_every_function_pins_its_search_path(functions):
    """Or has a body that was parsed when it was made."""
    pinned = "search_path=pg_catalog, pg_temp"
    assert not offenders(
        functions, lambda f: f["prokind"] == "f" and pinned not in (f["proconfig"] or ()) and not f["parsed"]
    )


def test_wrappers_are_a_few_lines(functions):
    assert offenders(functions, lambda f: len(f["prosrc"].strip().splitlines()) > WRAPPER_LINES) == list(LONGER)


def test_every_function_has_a_comment(functions):
    assert not offenders(functions, lambda f: not f["comment"])


def test_every_function_is_tested_by_pgtap(functions):
    tests = "".join(path.read_text() for path in (Path(__file__).parents[1] / "pgtap").rglob("*.sql"))
    internal = ("llm_boot", "llm_bpe_changed", "llm_model_config_changed")
    names = {f["name"].split("(")[0].split(".")[-1] for f in functions} - set(internal)
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", tests)) == []


def test_promised_names_parameters_order_and_defaults_stay(module_conn):
    """Of golden/signatures.txt, one a line; optional parameters, and columns of results, may follow."""
    rows = module_conn.execute("""
        SELECT p.proname, pg_get_function_arguments(p.oid), coalesce(pg_get_function_result(p.oid), '')
        FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    """).fetchall()

    def plain(text: str) -> str:
        text = text.replace("llm_texts", "text[]")  # a domain takes what its base type takes
        return re.sub(r"::(double precision|[a-z0-9]+)(\[\])?|\bIN ", "", text)

    for line in (Path(__file__).parents[1] / "golden" / "signatures.txt").read_text().splitlines():
        name, given, result = re.fullmatch(r"(\w+)\((.*?)\)(?: -> (.*))?", line).groups()
        fitting = [
            plain(arguments)[len(given) :]
            for actual, arguments, returned in rows
            if actual == name and plain(arguments).startswith(given) and returned.startswith((result or "").rstrip(")"))
        ]
        assert fitting, f"not as promised: {line}"
        assert all(" DEFAULT " in more for more in fitting[0].split(", ")[1:]), line


RENAMED = {"text_in": "text", "input": "data", "grad_output": "dy", "audit": "level", "training": "train"}  # in Python
PACKAGE = Path(__file__).parents[2] / "plpython" / "pg_gpt2"


def python_parameters() -> dict[tuple[str, str], tuple[list[str], bool]]:
    """(module, function) of server/api -> names of its parameters, and whether the others come by name."""
    kernels = {
        f.name: f for f in ast.parse((PACKAGE / "bytea_ops.py").read_text()).body if isinstance(f, ast.FunctionDef)
    }
    found = {}
    for path in (PACKAGE / "server" / "api").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("kernel(bytea_ops."):
                node = kernels[ast.unparse(node.targets[0])]
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in node.args.args]
                found[path.stem, node.name] = (names, node.args.kwarg is not None)
    return found


def names_read(path: Path) -> set[str]:
    """The names that stand in a module as strings, which are those that it may read from what it is given."""
    found = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_parameters_have_the_order_and_the_names_of_the_python_function_that_gets_them(module_conn):
    """A body hands all of them on. What a function does not name arrives by name: an option that is declared, or a name that
    the module reads."""
    known = python_parameters()
    read = {path.stem: names_read(path) for path in (PACKAGE / "server" / "api").glob("*.py")}
    read["generation"] = {option.name for option in all_options()} | {"options"}
    read["rows"] |= read["generation"]
    read["json"] |= read["generation"]
    read["training"] |= {option.name for option in training_options()} | {"options"}
    rows = module_conn.execute("""
        SELECT p.proname, coalesce(p.proargnames[:p.pronargs], '{}'), p.prosrc
        FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        JOIN pg_language l ON l.oid = p.prolang
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
          AND l.lanname = 'plpython3u'
          AND p.proname NOT IN ('llm_boot', 'llm_compile', 'llm_cosine_sent') AND p.prorettype <> 'trigger'::regtype
    """).fetchall()
    assert len(rows) > 80
    for name, given, source in rows:
        module, function = re.search(r"\]\.(\w+)\.(\w+)\(globals\(\)\)", source).groups()
        named, has_more = known[module, function]
        own = given[: len(named)]
        assert has_more or len(given) == len(named), name
        assert set(given[len(named) :]) <= read[module], name
        for ours, theirs in zip(own, named, strict=True):
            assert ours == theirs or ours == "sent" or RENAMED.get(ours) == theirs, (name, ours, theirs)


def test_autovacuum_takes_dead_weights_early_and_without_delay(module_conn):
    """Each write of a model leaves a version of before, nearly all of it in the toast table."""
    rows = module_conn.execute("""
        SELECT c.reloptions, t.reloptions FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid
        WHERE c.oid = 'llm_param'::regclass
    """).fetchall()
    early = "autovacuum_vacuum_scale_factor=0.05"
    assert rows == [([early], [early, "autovacuum_vacuum_cost_delay=0"])]


def test_every_view_is_read_with_the_rights_of_who_asks(module_conn):
    """So that row-level security of what it reads counts. PostgreSQL 14 has no such views, and there they are otherwise made."""
    rows = module_conn.execute("""
        SELECT c.relname, coalesce(c.reloptions, '{}') FROM pg_depend AS d
        JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND c.relkind = 'v'
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    """).fetchall()
    assert rows
    if module_conn.info.server_version >= 150000:
        assert [name for name, options in rows if options != ["security_invoker=true"]] == []


def test_views_of_postgresql_14_show_nothing_to_whom_rows_are_hidden(new_database):
    """What the script does there, done here: the same statement, for which no server is young enough."""
    script = (Path(__file__).parents[2] / "sql" / "privileges.sql").read_text()
    with psycopg.connect(new_database(), autocommit=True) as conn:
        conn.execute(
            "SELECT llm_init_model('m', 1, 2, 8, 16, 50); CREATE ROLE filtered; SELECT llm_grant_usage('filtered')"
        )
        views = [
            name for (name,) in conn.execute("SELECT relname FROM pg_class WHERE relkind = 'v' AND relname ~ '^llm_'")
        ]
        conn.execute("".join(f"ALTER VIEW {view} RESET (security_invoker);" for view in views))
        conn.execute(script[script.index("DO LANGUAGE") :].replace("150000", "999999"))
        before = conn.execute("SELECT llm_models FROM llm_models ORDER BY model").fetchall()
        try:
            conn.execute("SET ROLE filtered")
            assert conn.execute("SELECT llm_models FROM llm_models ORDER BY model").fetchall() == before
            conn.execute("RESET ROLE; ALTER TABLE llm_param ENABLE ROW LEVEL SECURITY; SET ROLE filtered")
            for view in views:
                assert conn.execute(f"SELECT count(*) FROM {view}").fetchone() == (0,), view
            conn.execute("RESET ROLE")
            assert conn.execute("SELECT llm_models FROM llm_models ORDER BY model").fetchall() == before
            assert conn.execute("UPDATE llm_autograd_mode SET flag = true RETURNING flag").fetchone() == (True,)
        finally:
            conn.execute("RESET ROLE; DROP OWNED BY filtered; DROP ROLE filtered")


def test_what_writes_or_scores_text_calls_its_model_model_name_and_all_else_model(module_conn):
    """As the pages say: PostgreSQL's error about a name that is not there does not tell which there is."""
    pages = {
        name: (Path(__file__).parents[2] / "sql" / f"{name}.sql").read_text()
        for name in ("generation", "json", "scoring", "choosing", "rows")
    }
    writers = {name for text in pages.values() for name in re.findall(r"^CREATE FUNCTION (\w+)", text, re.MULTILINE)}
    writers |= {"llm_logits", "llm_logits_sent"}  # a piece of the model, and scores all the same
    found = module_conn.execute("""
        SELECT p.proname, p.proargnames FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
          AND p.proargnames[:p.pronargs] && '{model,model_name}'
    """).fetchall()
    assert len(found) > 50
    assert [n for n, arguments in found if ("model_name" if n in writers else "model") not in arguments] == []


def test_every_relation_and_column_has_a_comment(module_conn):
    missing = module_conn.execute("""
        SELECT c.oid::regclass::text, a.attname
        FROM pg_depend d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND c.relkind IN ('r', 'v')
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND c.relkind = 'r'
        WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
          AND (obj_description(c.oid, 'pg_class') IS NULL OR a.attnum IS NOT NULL AND col_description(c.oid, a.attnum) IS NULL)
    """).fetchall()
    assert missing == []


def test_the_comment_of_llm_op_lists_the_ops_that_there_are(module_conn):
    (comment,) = module_conn.execute("SELECT obj_description(oid) FROM pg_proc WHERE proname = 'llm_op'").fetchone()
    listed = re.search(r"Ops: (.*?)\. ", re.sub(r" *(\{.*?\}|\(.*?\))", "", comment))[1]  # type: ignore[index]
    with pytest.raises(psycopg.errors.UndefinedObject) as unknown:
        module_conn.execute("SELECT llm_op('nosuch', '{}')")
    there = str(unknown.value.diag.message_hint).removeprefix("Ops: ").removesuffix(".")
    assert sorted(re.split(", | and ", listed)) == there.split(", ")


def test_the_module_table_is_writable_by_its_owner_only(conn, module_conn):
    """Its rows run as the server's operating-system user."""
    module_conn.execute("CREATE ROLE someone")
    try:
        conn.execute("SET ROLE someone")
        for statement in (
            "UPDATE llm_module SET source = ''",
            "UPDATE llm_module SET code = '', code_of = digest",
            "SELECT llm_compile()",
            "DELETE FROM llm_module",
            "INSERT INTO llm_module VALUES ('pg_gpt2.x', '')",
            "TRUNCATE llm_module",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)
    finally:
        module_conn.execute("DROP ROLE someone")


def test_public_may_not_execute_what_changes_models_or_touches_files(module_conn):
    allowed = module_conn.execute("""
        SELECT p.proname FROM pg_proc p WHERE has_function_privilege('public', p.oid, 'EXECUTE')
          AND (p.proname ~ '^llm_(init|copy|drop|import|dataset|train(_|$))' OR p.proname ~ '^pg_llm_(import|export|load)')
    """).fetchall()
    assert allowed == []


def test_a_backend_imports_the_standard_library_numpy_and_this_package_only(conn):
    """After the main functions ran; llm_module's own names carry a digest."""
    conn.execute("SELECT llm_train_bpe($$SELECT 'low lower lowest newer wider' $$, 260, 'm')")
    conn.execute("SELECT llm_init_model('m', 1, 2, 16, 32)")
    conn.execute("SELECT llm_generate('low', 5, model_name => 'm', seed => 1)")
    conn.execute("SELECT llm_dataset_load($$SELECT repeat('low lower ', 50)$$, 'm', 16)")
    conn.execute("SELECT llm_train('m', 2, batch_size => 2)")
    conn.execute("SELECT llm_import_safetensors(string_agg(c, ''), 'm', true) FROM llm_export_safetensors('m') c")
    conn.execute(
        "CREATE FUNCTION pg_temp.modules() RETURNS SETOF text LANGUAGE plpython3u AS 'import sys; return list(sys.modules)'"
    )
    modules = {name.split(".")[0] for (name,) in conn.execute("SELECT pg_temp.modules()")}
    ours = {name for name in modules if name.startswith("pg_gpt2_")}
    assert len(ours) == 1
    ours |= {"plpy", "__main__", "sitecustomize"}
    numpys = {"numpy", "cython_runtime"} | {name for name in modules if name.startswith("_cython_")}
    virtual_environments = {"_distutils_hack"}  # a .pth file imports it at start
    assert modules - ours - numpys - virtual_environments - set(sys.stdlib_module_names) == set()


LEVELS = ("none", "read", "train", "admin")


@pytest.fixture(scope="module")
def matrix(new_database):
    """Lines of golden/privileges.sql, in a database where nobody else was given anything."""
    with psycopg.connect(new_database(), autocommit=True) as conn:
        for level in LEVELS:
            conn.execute(f"CREATE ROLE privileges_{level}")
        for level in LEVELS[1:]:
            conn.execute(f"SELECT llm_grant_usage('privileges_{level}', '{level}')")
        yield [line for (line,) in conn.execute((GOLDEN / "privileges.sql").read_text())]
        for level in LEVELS:
            conn.execute(f"DROP OWNED BY privileges_{level}; DROP ROLE privileges_{level}")


def test_the_privileges_on_every_object_are_those_of_the_golden_file(matrix):
    if "PG_GPT2_WRITE_GOLDEN" in os.environ:
        (GOLDEN / "privileges.txt").write_text("".join(f"{line}\n" for line in matrix))
    assert matrix == (GOLDEN / "privileges.txt").read_text().splitlines()


def test_public_changes_nothing_and_each_level_includes_the_one_before(matrix):
    for line in matrix:
        name, *levels = line.split(" | ")
        held = [set(level.split(": ")[1].split()) - {"-"} for level in levels]
        assert all(less <= more for less, more in itertools.pairwise(held)), line
        if name.startswith(("table", "view", "sequence")):
            setting = "llm_autograd_mode" in name  # a view of the session's own
            assert held[0] <= {"SELECT", "UPDATE"} if setting else {"SELECT"}, line
            assert name.split()[1] not in ("llm_module", "llm_limit", "llm_bpe_version") or held[3] <= {"SELECT"}, line
