"""What is done: calls of every function with odd arguments, on rows changed by hand; each case comes from its number."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import psycopg

from tests.server.test_hostile import EXAMPLES, arguments

from .values import odd, tampered

FUNCTIONS = """
    SELECT p.proname, coalesce(p.proargnames[:p.pronargs], '{}'),
           ARRAY(SELECT format_type(coalesce(nullif((SELECT typbasetype FROM pg_type WHERE oid = t), 0), t), NULL)
               FROM unnest(p.proargtypes) AS t),
           CASE WHEN p.prokind = 'p' THEN 'procedure' WHEN p.prorettype = 'trigger'::regtype THEN 'trigger' ELSE 'function' END
    FROM pg_depend AS d JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    ORDER BY p.proname, p.oid
"""
COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, NULL)
    FROM pg_depend AS d JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND c.relkind = 'r' AND c.relname <> 'llm_module'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
    ORDER BY c.relname, a.attnum
"""
SETTINGS = {
    "pg_gpt2.threads": ("1", "2", "x", ""),
    "pg_gpt2.max_memory": ("10MB", "300MB", "lots", "1"),
    "pg_gpt2.prefix_cache": ("0", "100kB", "10MB", "lots", ""),
    "pg_gpt2.autograd": ("on", "off", "maybe"),
    "pg_gpt2.attention_chunk": ("1", "7", "0"),
    "pg_gpt2.model": ("m", "nosuch", "", "x"),
    "pg_gpt2.audit_keep": ("0", "1", "-1"),
    "transaction_read_only": ("on",),
    "search_path": ("nosuch", "pg_catalog", "public"),
}
PREPARE = """
    CREATE TABLE t AS SELECT 'low lower lowest the cat sat on the mat ' AS x;
    SELECT llm_train_bpe('SELECT x FROM t', 270, 'm');
    SELECT llm_init_model('m', 2, 2, 16, 32);
    SELECT llm_copy_model('m', 'x'), llm_copy_model('m', 'y'), llm_share_param('y', 'wte', 0, 'x');
    SELECT llm_copy_model('m', 'base'), llm_adapter_create('fit', 'base', r => 2);
    SELECT llm_dataset_load('SELECT repeat(x, 50) FROM t', 'm', 16, val_fraction => 0.2);
    SELECT llm_train('m', 2, batch_size => 2);
    SELECT llm_train_step('m');
    SELECT llm_checkpoint_save('m');
    SELECT llm_checkpoint_load('m', 1);
    SELECT llm_checkpoint_save('m', file_path => '{folder}/c.npz');
    SELECT pg_llm_export_safetensors('{folder}/m.safetensors', 'm'), pg_llm_export_npz('{folder}/m.npz', 'm');
    SELECT llm_op('mul', ARRAY[h, h]) FROM llm_variable('\\x0000803f', '{1}', true) AS h
"""


@dataclass(frozen=True)
class Case:
    """Statements of one transaction, or a procedure's call alone; errors of what is not the last one are passed by."""

    statements: tuple[str, ...]
    in_transaction: bool = True


class Function(NamedTuple):
    """A function, procedure or trigger function of the extension."""

    name: str
    parameters: list[str]
    types: list[str]
    kind: str


class Catalogue:
    """The functions and columns of the extension, and cases made of them."""

    def __init__(self, conn: psycopg.Connection, folder: str) -> None:
        self.functions = [Function(*row) for row in conn.execute(FUNCTIONS).fetchall()]
        self.columns: list[tuple[str, str, str]] = conn.execute(COLUMNS).fetchall()  # type: ignore[assignment]
        self.folder = folder

    def case(self, seed: str) -> Case:
        """The case of a seed, always the same."""
        choice = random.Random(seed)
        function = choice.choice(self.functions)
        before = [f"SELECT set_config('{name}', '{value}', true)" for name, value in self._settings(choice)]
        tampering = choice.random() < 0.4
        if tampering:
            before += [self._change(choice) for _ in range(choice.choice((1, 1, 2)))]
        if choice.random() < 0.3:  # a tape to look at
            before.append(
                "SELECT llm_op('gelu', ARRAY[llm_variable(decode(repeat('0000803f', 16), 'hex'), '{4,4}', true)])"
            )
        call = self._call(function, choice, 0.1 if tampering else 0.6)
        if function.kind == "procedure":
            return Case((call,), in_transaction=False)
        return Case(tuple(statement.replace("{folder}", self.folder) for statement in (*before, call)))

    def _settings(self, choice: random.Random) -> list[tuple[str, str]]:
        return [(name, choice.choice(values)) for name, values in SETTINGS.items() if choice.random() < 0.02]

    def _change(self, choice: random.Random) -> str:
        """Another value in a column of a row."""
        table, column, kind = choice.choice(self.columns)
        place = f"(SELECT {choice.randrange(1000)} % greatest(count(*), 1) FROM {table})"
        row = f"(SELECT ctid FROM {table} ORDER BY ctid OFFSET {place} LIMIT 1)"
        return f'UPDATE {table} SET "{column}" = {tampered(column, kind, choice)} WHERE ctid = {row}'

    def _call(self, function: Function, choice: random.Random, often: float) -> str:
        """A call in which arguments are odd so `often`."""
        if function.kind == "trigger":
            return (
                f"CREATE TEMPORARY TABLE own (a integer, model text); CREATE TRIGGER t BEFORE INSERT OR UPDATE ON own FOR EACH"
                f" {choice.choice(('ROW', 'STATEMENT'))} EXECUTE FUNCTION {function.name}(); INSERT INTO own VALUES (1, 'm')"
            )
        example = EXAMPLES.get(function.name, "")
        given = arguments(example, function.parameters)
        for name, kind in zip(function.parameters, function.types):
            if (name not in given and choice.random() < often / 2) or (name in given and choice.random() < often):
                given[name] = odd(kind, choice)
        named = ", ".join(f'"{name}" => {value}' for name, value in given.items())
        if function.kind == "procedure":
            return f"CALL {function.name}({named})"
        return choice.choice((f"SELECT {function.name}({named})", f"SELECT * FROM {function.name}({named})"))
