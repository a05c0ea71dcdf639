"""JSON in the server: what is generated under a schema is valid and complete, and a row of any table can be inserted."""

import json
import random
import re
import time

import psycopg
import pytest

from tests.engine.schemas import is_valid, random_schema, read

CORPUS = 'low lower lowest newer wider {"name": "low", "n": 12} [true, null] naïve 日本語'

TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"');
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0 AND VALUE <= 1000);
    CREATE DOMAIN code AS varchar(6) NOT NULL CHECK (VALUE ~ '^[A-Z]{2}[0-9]*$') CHECK (length(VALUE) >= 3);
    CREATE DOMAIN short_code AS code CHECK (VALUE <> 'AB1');
    CREATE DOMAIN price AS numeric(6, 2) CHECK (VALUE >= 0);
    CREATE DOMAIN flag AS boolean;
    CREATE DOMAIN shade AS text CHECK (VALUE IN ('red', 'gr''een', 'blue')) DEFAULT 'red';
    CREATE TYPE place AS (street text, zip char(5), at point, floors positive[]);
    CREATE TABLE named ("it's" mood NOT NULL, "A b" numeric(4, 1), "select" bool[]);
"""

COLUMNS = [  # what may stand behind a column's name {c}
    *("text", "varchar(7)", "char(3)", "varchar", "name", "smallint", "integer", "bigint", "real", "double precision"),
    *(
        "numeric",
        "numeric(5, 2)",
        "numeric(3, 0)",
        "numeric(3, 5)",
        "numeric(40, 20)",
        "numeric(60, 55)",
        "boolean",
        "date",
        "uuid",
    ),
    *("time", "timetz", "timestamp", "timestamptz(0)", "mood", "positive", "short_code", "place", "named", "mood[]"),
    *("varchar(2)[]", "code[]", "place[]"),
    "text CHECK ({c} IN ('low', 'high', 'don''t \"know\"'))",
    "varchar(4) CHECK ({c} IN ('low', 'higher', '日本'))",
    "varchar(9) CHECK ({c} = 'a' OR {c} = 'b' OR {c} IS NULL)",
    "char(4) CHECK ({c} IN ('a', 'abcd'))",
    "text CHECK ({c} <> '' AND char_length({c}) <= 5)",
    "varchar(30) CHECK (length({c}) BETWEEN 2 AND 4)",
    "text CHECK ({c} ~ '^[a-c]+@\\d{{2}}$')",
    "varchar(8) CHECK ({c} ~ 'b+')",
    "text CHECK ({c} ~ '^x') CHECK ({c} IN ('xy', 'yx'))",
    "integer CHECK ({c} IN (-3, 1, 5, 7)) CHECK ({c} < 6)",
    "smallint CHECK ({c} BETWEEN -5 AND 5)",
    "bigint CHECK ({c} > 9000000000)",
    "integer CHECK (0 <= {c})",
    "numeric(6, 2) CHECK ({c} > 0 AND {c} < 10.005)",
    "numeric CHECK ({c} > 0.5 AND {c} < 0.75)",
    "numeric(3, 1) CHECK ({c} IN (1, 2.5, 2.55))",
    "real CHECK ({c} >= 0.1 AND {c} < 100)",
    "real CHECK ({c} IN (0.5, 0.1))",
    "double precision CHECK ({c} > 0.1 AND {c} <= 0.3)",
    "double precision CHECK ({c} > -1 AND {c} < 1)",
    "boolean CHECK ({c})",
    "boolean CHECK (NOT {c})",
    "mood CHECK ({c} IN ('sad', 'ok'))",
    "date CHECK ({c} IN ('2024-02-29', '2023-01-01'))",
    "uuid CHECK ({c} = '00000000-0000-4000-8000-000000000000')",
    "positive CHECK ({c} < 10)",
    "price CHECK ({c} < 9.99)",
    "flag CHECK ({c})",
    "numeric(60, 55) CHECK ({c} > 0)",
    "real CHECK ({c} > -1e40 AND {c} < 1e45)",
    "text CHECK ({c} IS NOT NULL)",
]
FILLED = [  # what the server fills in, or no schema describes
    *("serial NOT NULL", "integer GENERATED ALWAYS AS IDENTITY", "text NOT NULL DEFAULT 'x'", "shade NOT NULL"),
    *("integer GENERATED ALWAYS AS (1 + 1) STORED", "timestamptz NOT NULL DEFAULT now()", "bytea", "jsonb", "xml[]"),
]


@pytest.fixture(autouse=True, scope="module")
def models(module_conn):
    module_conn.execute("SELECT llm_train_bpe(%s, 300, 'tiny')", [f"VALUES ('{CORPUS}')"])
    module_conn.execute("SELECT llm_init_model('tiny', 1, 2, 8, 256, seed => 1)")
    module_conn.execute(TYPES)


def one(conn, statement, *args):
    return conn.execute(statement, args).fetchone()[0]


def generated(conn, schema, seed=1, **more):
    """What llm_generate_json gives, as text."""
    named = "".join(f", {name} => {value}" for name, value in more.items())
    call = f"llm_generate_json('low', %s::jsonb, model_name => 'tiny', seed => {seed}{named})"
    return one(conn, f"SELECT {call}::text", json.dumps(schema))


# ---- under a schema


@pytest.mark.parametrize("fast", ["on", "off"])
def test_what_is_generated_is_valid_and_complete(module_conn, fast):
    module_conn.execute(f"SET pg_gpt2.fast = {fast}")
    for seed in range(60):
        schema = random_schema(random.Random(seed))
        try:
            said = generated(module_conn, schema, seed, max_tokens=random.Random(seed).choice((40, 120)))
        except psycopg.errors.InvalidParameterValue as error:
            if "no value fits" not in str(error) and "max_tokens" not in str(error):
                raise
            continue
        assert is_valid(read(said), schema, schema), (schema, said)
    module_conn.execute("RESET pg_gpt2.fast")


def test_a_schema_is_an_option_of_every_function_that_generates(module_conn):
    schema = {"properties": {"n": {"type": "integer", "minimum": 3, "maximum": 40}, "w": {"enum": ["low", "high"]}}}
    schema["required"] = ["w", "n"]
    options = json.dumps({"json_schema": schema})
    call = "'low', {} model_name => 'tiny', options => %s{}"
    texts = [
        one(module_conn, f"SELECT llm_generate({call.format('echo => false, seed => 3,', '')})", options),
        one(module_conn, f"SELECT text FROM llm_beam_search({call.format('', '')}) LIMIT 1", options),
        one(
            module_conn,
            f"SELECT text FROM llm_generate_stream({call.format('echo => false, seed => 3,', '')}) WHERE is_complete",
            options,
        ),
        one(
            module_conn,
            "SELECT text FROM llm_generate_batch('{low,wider}', echo => false, seed => 3, model_name => 'tiny', options => %s)",
            options,
        ),
        one(
            module_conn,
            "SELECT llm_decode(llm_generate_tokens(llm_encode('low', 'tiny'), seed => 3, model_name => 'tiny', options => %s),"
            " 'tiny')",
            options,
        ),
    ]
    for text in texts:
        text = text.removesuffix("<|endoftext|>")
        assert is_valid(json.loads(text), schema, schema), text
    assert texts[0] == texts[2] == texts[3]
    same = one(
        module_conn, "SELECT llm_generate_json('low', %s, 64, seed => 3, model_name => 'tiny')", json.dumps(schema)
    )
    assert same == json.loads(texts[0])


def test_max_tokens_that_suffice_for_no_text_are_refused_at_the_call(module_conn):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="max_tokens"):
        generated(module_conn, {"type": "string", "minLength": 100}, max_tokens=10)


@pytest.mark.parametrize(
    ("schema", "state"),
    [('{"oneOf": []}', "0A000"), ("3", "22023"), ("[]", "22023"), ("null", "22023"), ('{"minimum": 1e90}', "54000")],
)
def test_a_schema_that_cannot_be_held_is_refused(module_conn, schema, state):
    with pytest.raises(psycopg.Error) as caught:
        one(module_conn, "SELECT llm_generate_json('low', %s, model_name => 'tiny')", schema)
    assert caught.value.sqlstate == state
    assert caught.value.diag.message_hint


def test_numbers_in_a_schema_keep_all_their_digits(module_conn):
    bounds = '{"type": "number", "minimum": 999999999999999999.97, "maximum": 999999999999999999.98}'
    found = {
        one(module_conn, "SELECT llm_generate_json('low', %s, seed => %s, model_name => 'tiny')::text", bounds, seed)
        for seed in range(10)
    }
    assert found <= {"999999999999999999.97", "999999999999999999.98"}


def test_deep_and_huge_schemas_end_in_bounded_time(module_conn):
    began = time.monotonic()
    for schema in (
        '{"items": ' * 3000 + '{"type": "null"}' + "}" * 3000,
        json.dumps({"enum": [f"value {n}" for n in range(80_000)]}),
        json.dumps({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
        json.dumps({"type": "string", "description": "x" * 2_000_000}),
    ):
        with pytest.raises(psycopg.Error) as caught:
            one(module_conn, "SELECT llm_generate_json('low', %s, 3, model_name => 'tiny')", schema)
        assert caught.value.sqlstate in ("22023", "0A000", "54000", "54001")
    assert generated(module_conn, {"type": "string", "maxLength": 2**31}, max_tokens=5)
    assert time.monotonic() - began < 10


# ---- rows


def table(rng, name):
    """The statement that makes a random table, and how many columns it has that are to be given."""
    parts = []
    for n in range(rng.randint(1, 6)):
        what = rng.choice(COLUMNS)
        parts.append(f"c{n} {what.format(c=f'c{n}')}{rng.choice((' NOT NULL', ''))}")
    given = len(parts)
    parts += [f"f{n} {rng.choice(FILLED)}" for n in range(rng.randint(0, 2))]
    rng.shuffle(parts)
    return f"CREATE TABLE {name} ({', '.join(parts)})", given


TABLES = 60


def test_a_row_under_the_schema_of_any_table_can_be_inserted(module_conn):
    for seed in range(TABLES):
        rng = random.Random(seed)
        statement, given = table(rng, "any_table")
        if module_conn.info.server_version < 150000:
            statement = statement.replace("numeric(3, 5)", "numeric(3, 0)")  # a scale above the precision came with 15
        with module_conn.transaction(force_rollback=True):
            module_conn.execute(statement)
            schema = one(module_conn, "SELECT llm_json_schema('any_table')")
            columns = ", ".join(f'"{name}"' for name in schema["required"])
            assert len(schema["required"]) == given
            assert "Not held" not in schema.get("$comment", "") or "short_code" in statement, (statement, schema)
            for each in range(3):
                said = generated(module_conn, schema, seed=each, max_tokens=rng.choice((200, 400)))
                try:
                    module_conn.execute(
                        f"INSERT INTO any_table ({columns}) SELECT {columns}"
                        " FROM jsonb_populate_record(NULL::any_table, %s)",
                        [said],
                    )
                except psycopg.Error as error:
                    raise AssertionError((statement, schema, said)) from error


def test_a_table_without_filled_columns_takes_the_row_as_it_is(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TABLE ticket (body text NOT NULL, product varchar(20) NOT NULL CHECK (product IN ('web', 'app')),"
            " urgent boolean NOT NULL, due date, mood mood)"
        )
        statement = (
            "INSERT INTO ticket SELECT * FROM jsonb_populate_record(NULL::ticket, llm_generate_json('low',"
            " llm_json_schema('ticket'), seed => %s, model_name => 'tiny'))"
        )
        for seed in range(20):
            module_conn.execute(statement, [seed])
        assert one(module_conn, "SELECT count(*) FROM ticket") == 20


def test_what_is_left_out_and_not_held_is_said(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TABLE other (id integer PRIMARY KEY); CREATE TABLE said (id serial PRIMARY KEY, a integer CHECK (a % 2 = 0),"
            " b integer REFERENCES other, c bytea, d integer GENERATED ALWAYS AS (1) STORED, e text UNIQUE, f shade,"
            " CONSTRAINT both_of CHECK (a < b))"
        )
        schema = one(module_conn, "SELECT llm_json_schema('said')")
        assert schema["required"] == ["a", "b", "e"]
        assert schema["$comment"] == (
            "Left out: id (default), c (bytea), d (generated), f (default)."
            " Not held: CHECK said_a_check, CHECK both_of, FOREIGN KEY said_b_fkey, UNIQUE said_e_key."
        )


def inserted(conn, name, seeds=5):
    """Insert rows that are generated under the schema of a table; its $comment."""
    schema = one(conn, f"SELECT llm_json_schema('{name}')")
    for seed in range(seeds):
        said = generated(conn, schema, seed)
        columns = ", ".join(f'"{column}"' for column in schema["required"])
        conn.execute(
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM jsonb_populate_record(NULL::{name}, %s)", [said]
        )
    return schema.get("$comment")


def test_is_not_null_of_a_row_means_all_its_fields(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TYPE pair AS (a bool, b text); CREATE DOMAIN whole AS pair CHECK (VALUE IS NOT NULL);"
            "CREATE TABLE t (p pair NOT NULL CHECK (p IS NOT NULL), q pair NOT NULL, w whole, many whole[]);"
            "CREATE TYPE picture AS (photo bytea); CREATE TABLE u (p picture CHECK (p IS NOT NULL))"
        )
        assert inserted(module_conn, "t") is None
        properties = one(module_conn, "SELECT llm_json_schema('t')")["properties"]
        assert properties["p"]["properties"] == {"a": {"type": "boolean"}, "b": {"type": "string"}}
        assert properties["q"]["properties"]["a"] == {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="photo"):
            one(module_conn, "SELECT llm_json_schema('u')")


def test_constraints_on_what_the_server_computes_of_a_row_are_named(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE DOMAIN small AS integer CHECK (VALUE < 9);"
            "CREATE TABLE t (a integer, b integer GENERATED ALWAYS AS (a / 2) STORED CHECK (b < 10) UNIQUE,"
            " c text GENERATED ALWAYS AS (nullif(a::text, '')) STORED NOT NULL, d small GENERATED ALWAYS AS (a) STORED,"
            " e jsonb CHECK (coalesce(e, '1') = '2'), f serial PRIMARY KEY,"
            " CONSTRAINT whole_row CHECK (t IS NOT NULL), CONSTRAINT of_table CHECK (tableoid <> 0),"
            " EXCLUDE ((a + 1) WITH =)); CREATE UNIQUE INDEX ON t (lower(c)); CREATE UNIQUE INDEX ON t (f) INCLUDE (a);"
            " CREATE UNIQUE INDEX partly ON t (a) WHERE a > 5"
        )
        assert one(module_conn, "SELECT llm_json_schema('t') ->> '$comment'") == (
            "Left out: b (generated), c (generated), d (generated), e (jsonb), f (default)."
            " Not held: CHECK t_b_check, NOT NULL c, CHECK small_check, CHECK t_e_check, CHECK of_table, CHECK whole_row,"
            " UNIQUE INDEX partly, UNIQUE t_b_key, EXCLUDE t_expr_excl, UNIQUE INDEX t_lower_idx."
        )


def test_a_table_in_partitions_says_that_these_constrain_its_rows(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TABLE parts (k integer NOT NULL) PARTITION BY RANGE (k);"
            "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY LIST (k)"
        )
        below = "the bounds and own constraints of its partitions"
        comments = [one(module_conn, f"SELECT llm_json_schema('{name}') ->> '$comment'") for name in ("parts", "part")]
        assert comments == [f"Not held: {below}.", f"Not held: the bounds of the partition, {below}."]


def test_a_domain_that_refuses_null_may_be_left_out_or_within_a_row(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE DOMAIN key_of AS uuid NOT NULL DEFAULT gen_random_uuid();"
            "CREATE DOMAIN given AS int CHECK (VALUE IS NOT NULL);"
            "CREATE TYPE kept AS (k key_of, a bool, s shade);"
            "CREATE TABLE t (id key_of, n given DEFAULT 1, s shade, a boolean NOT NULL); CREATE TABLE u (v kept NOT NULL)"
        )
        schema = one(module_conn, "SELECT llm_json_schema('t')")
        assert schema["required"] == ["a"]
        assert schema["$comment"] == (
            "Left out: id (default), n (default), s (default)."
            " Rows by jsonb_to_record only, as a domain may refuse the null of jsonb_populate_record: id, n."
        )
        said = generated(module_conn, schema)
        module_conn.execute("INSERT INTO t (a) SELECT a FROM jsonb_to_record(%s) AS r (a boolean)", [said])
        assert inserted(module_conn, "u") is None
        kept = one(module_conn, "SELECT llm_json_schema('kept')")
        assert (kept["required"], kept.get("$comment")) == (["k", "a", "s"], None)
        made = "SELECT (jsonb_populate_record(NULL::kept, %s)).k IS NOT NULL"
        assert one(module_conn, made, generated(module_conn, kept))


def test_a_schema_of_rows_within_rows_ends_in_bounded_time(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("CREATE TABLE t0 (a int); CREATE TABLE w0 (a int); CREATE TABLE d0 (a int)")
        for n in range(1, 15):
            module_conn.execute(f"CREATE TABLE t{n} (a t{n - 1}, b t{n - 1})")
        for n in range(1, 6):
            module_conn.execute(f"CREATE TABLE w{n} ({', '.join(f'c{c} w{n - 1}[]' for c in range(10))})")
        for n in range(1, 100):
            module_conn.execute(f"CREATE TABLE d{n} (a d{n - 1})")
        began = time.monotonic()
        for name in ("t14", "w5", "d99"):
            with (
                pytest.raises(psycopg.errors.ProgramLimitExceeded, match="the rows within it") as caught,
                module_conn.transaction(),
            ):
                one(module_conn, f"SELECT llm_json_schema('{name}')")
            assert caught.value.diag.message_hint
        assert time.monotonic() - began < 20  # without a bound the first of them takes hours
        assert one(module_conn, "SELECT llm_json_schema('w2')")["required"] == [f"c{c}" for c in range(10)]


MANY = "Not held: bounds of many digits."
FEW = "Not held: bounds that few numbers are between."
TOO_LARGE = "1" + "0" * 5000


@pytest.mark.parametrize(
    ("kind", "check", "expected", "is_held"),
    [
        # a constant of another family is no value of the type
        ("text", "x = 5::text", {"type": "string"}, False),
        ("text", "x = true::text", {"type": "string"}, False),
        ("text", "x IN (5::text, 'a')", {"type": "string"}, False),
        ("text", "x = ANY (ARRAY[1, 2]::text[])", {"type": "string"}, False),
        ("text", "x = ('0.5'::real)::text", {"type": "string"}, False),
        ("text", "x = 5::text AND x <> ''", {"type": "string", "minLength": 1}, False),
        ("integer", "x = true::integer", {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}, False),
        ("boolean", "x = 1::boolean", {"type": "boolean"}, False),
        ("boolean", "x = 't'::text::boolean", {"type": "boolean"}, False),
        ("date", "x = '2024-12-31 12:00'::timestamp", {"type": "string", "format": "date"}, False),
        # casts that do not keep each value as it is
        ("bigint", "x::integer < 5", {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, False),
        ("bigint", "x < 5e4::float8", {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, False),
        ("bigint", "x::numeric < 5", {"type": "integer", "minimum": -(2**63), "maximum": 4}, True),
        ("integer", "x::float8 > 2.99999999999999999", {"type": "integer", "minimum": 4, "maximum": 2**31 - 1}, True),
        ("smallint", "x::real <= 5", {"type": "integer", "minimum": -(2**15), "maximum": 5}, True),
        ("text", "x::bpchar <> ''", {"type": "string"}, False),
        ("text", "length(x::bpchar) > 2", {"type": "string"}, False),
        ("text", "x = 'a '::bpchar::text", {"type": "string"}, False),
        ("char(3)", "x::text = 'a '", {"type": "string", "maxLength": 3}, False),
        # few numbers between two bounds
        ("numeric", "x > 0 AND x < 1e-12", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-12}, True),
        ("double precision", "x > 9007199254740990 AND x < 9007199254740993", {"type": "number"}, FEW),
        # an integer compared with numbers that have a point
        ("integer", "x = 5.0", {"enum": [5]}, True),
        ("bigint", "x IN (1.0, -2.00, 1, 2.5)", {"enum": [1, -2]}, True),
        ("smallint", "x = '3e1'::real", {"enum": [30]}, True),
        ("numeric(4, 0)", "x IN (1.0, 20.0)", {"enum": [1, 20]}, True),
        # numbers of too many digits
        ("numeric", "x < 1e5000", {"type": "number"}, False),
        ("numeric", f"x < {TOO_LARGE}", {"type": "number"}, False),
        ("numeric", "x > 0 AND x < 1e5000", {"type": "number", "exclusiveMinimum": 0}, False),
        ("numeric", "x IN (1, 1e5000)", {"type": "number"}, False),
        ("numeric", "x > 1e-5000", {"type": "number"}, False),
        ("integer", "x < 1e4000", {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}, False),
        ("smallint", "x > -1e4000", {"type": "integer", "minimum": -(2**15), "maximum": 2**15 - 1}, False),
        ("numeric(10, 2)", "x = 1e4000", {"type": "number", "minimum": -99999999.99, "maximum": 99999999.99}, False),
        ("numeric(10, 2)", "x < 1e4000", {"type": "number", "minimum": -99999999.99, "maximum": 99999999.99}, False),
        ("double precision", "x < 1e300", {"type": "number"}, False),
        ("real", "x = 1e-300", {"type": "number"}, False),
        # reals
        ("double precision", "x > '0.1'::real", {"type": "number", "minimum": 0.100000001490117}, True),
        ("double precision", "x <= 0.1::real", {"type": "number", "maximum": 0.100000001490116}, True),
        ("double precision", "x > '0.5'::real", {"type": "number", "exclusiveMinimum": 0.5}, True),
        ("double precision", "x = '0.1'::real", {"enum": [0.10000000149011612]}, True),
        ("real", "x IN (0.5::real, '0.1'::real)", {"enum": [0.5, 0.10000000149011612]}, True),
        ("real", "x = ANY (ARRAY[0.5, 0.1]::real[])", {"enum": [0.5, 0.10000000149011612]}, True),
        ("numeric", "x < '0.1'::real::numeric", {"type": "number"}, False),
        ("double precision", "x > '1e-30'::real", {"type": "number"}, False),
        # numbers that a type rounds to an open bound, or beyond a bound
        ("real", "x < 0.2::real", {"type": "number", "maximum": 0.199999}, True),
        ("real", "x > 0.7::real", {"type": "number", "minimum": 0.700001}, True),
        ("real", "x >= 0.7::real", {"type": "number", "minimum": 0.7}, True),
        ("real", "x <= 0.2000000001", {"type": "number", "maximum": 0.199999}, True),
        ("double precision", "x < 1e16", {"type": "number", "maximum": 9999999999999900}, True),
        # numbers that a type does not have
        ("real", "x > 1e38", {"type": "number", "minimum": 100001 * 10**33, "maximum": 340282 * 10**33}, True),
        ("real", "x > -1e45", {"type": "number", "minimum": -340282 * 10**33, "maximum": 340282 * 10**33}, True),
        ("numeric(60, 55)", "x > 99999.5", {"type": "number", "exclusiveMinimum": 99999.5, "maximum": 1e5}, True),
        ("numeric(60, 30)", "x > 1e25", {"type": "number", "minimum": -1e30, "maximum": 1e30}, MANY),
        # domains
        ("price", "x < 50", {"type": "number", "minimum": 0, "maximum": 49.99}, True),
        ("price", "x IN (-1, 2.5, 1e5)", {"enum": [2.5]}, True),
        ("flag", "x = true", {"enum": [True]}, True),
    ],
)
def test_constants_of_checks_are_what_the_server_takes_them_for(module_conn, kind, check, expected, is_held):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(f"CREATE TABLE t (x {kind}, CONSTRAINT c CHECK ({check}))")
        schema = one(module_conn, "SELECT llm_json_schema('t')")
        found = schema["properties"]["x"]["anyOf"]
        assert found == [expected, {"type": "null"}]
        assert schema.get("$comment") == {True: None, False: "Not held: CHECK c."}.get(is_held, is_held)
        for seed in range(3 if is_held is True else 0):
            said = generated(module_conn, schema, seed)
            module_conn.execute("INSERT INTO t SELECT * FROM jsonb_populate_record(NULL::t, %s)", [said])
        for value in found[0].get("enum", []):  # all of them fulfil the check, and not by a null
            said = one(module_conn, "SELECT %s::text", json.dumps({"x": value}))
            module_conn.execute("INSERT INTO t SELECT * FROM jsonb_populate_record(NULL::t, %s)", [said])


def test_views_and_types_have_rows_and_other_relations_have_none(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute("CREATE VIEW seen AS SELECT 1 AS n, 'x'::varchar(3) AS v; CREATE SEQUENCE counted")
        assert one(module_conn, "SELECT llm_json_schema('seen')")["required"] == ["n", "v"]
        place = one(module_conn, "SELECT llm_json_schema('place')")
        assert (place["required"], place["$comment"]) == (["street", "zip", "floors"], "Left out: at (point).")
        for relation, state in (("'counted'", "22023"), ("999999999", "42704")):
            with pytest.raises(psycopg.Error) as caught, module_conn.transaction():
                one(module_conn, f"SELECT llm_json_schema({relation})")
            assert caught.value.sqlstate == state


def test_settings_of_the_session_do_not_change_a_schema(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TABLE t (d date CHECK (d IN ('2024-12-31')), p text CHECK (p ~ '^\\d$'), s text CHECK (s = 'a\\b'),"
            " f float CHECK (f = '0.12345678901234567'), u uuid NOT NULL, \"A b\" date NOT NULL)"
        )
        expected = one(module_conn, "SELECT llm_json_schema('t')")
        module_conn.execute(
            "SET LOCAL datestyle = 'German'; SET LOCAL standard_conforming_strings = off; SET LOCAL extra_float_digits = -9;"
            "SET LOCAL quote_all_identifiers = on"
        )
        assert one(module_conn, "SELECT llm_json_schema('t')") == expected
        assert expected["properties"]["d"]["anyOf"][0] == {"enum": ["2024-12-31"]}
        assert expected["properties"]["s"]["anyOf"][0] == {"enum": ["a\\b"]}


def test_a_column_that_must_be_given_and_cannot_be_described_is_named(module_conn):
    with module_conn.transaction(force_rollback=True):
        module_conn.execute(
            "CREATE TABLE t (a text, photo bytea NOT NULL); CREATE TABLE u (a integer NOT NULL CHECK (a = 1.5))"
        )
        for name, said in (
            ("t", 'column "photo" of public.t has the type bytea'),
            ("u", 'column "a" of public.u can have no'),
        ):
            with pytest.raises(psycopg.Error, match=re.escape(said)), module_conn.transaction():
                one(module_conn, f"SELECT llm_json_schema('{name}')")
