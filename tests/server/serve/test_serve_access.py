"""Who gets in, as whom, and what they can do there: only what their role may, and nothing that writes."""

import asyncio
import subprocess
import sys
from collections.abc import Callable

import httpx
import psycopg
import pytest
from psycopg import sql
from starlette.requests import Request

from loaders.serve.database import Database
from loaders.serve.errors import Forbidden
from loaders.serve.settings import Settings
from tests.server.client.models import MODEL, PROMPT
from tests.server.serve.conftest import SLOW
from tests.server.serve.serving import ROOT, serving
from tests.server.test_hidden_models import POLICIES

COMPLETION = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3}
KEY = "it-is-a-secret"
HEADER = "X-Database-Role"
NORTH, SOUTH = "serve_north", "serve_south"


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_all_answers_have_the_headers_of_a_careful_site(http):
    for path in ("/", "/v1/models", "/v1/absent"):
        headers = http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "[", "::1"])
def test_a_name_that_was_bent_to_this_machine_is_not_answered(http, host):
    for path in ("/", "/v1/models"):
        assert code(http.get(path, headers={"Host": host})) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8642", "LOCALHOST", "[::1]:99"])
def test_names_of_this_machine_are(http, host):
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_may_not_ask(http):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
        assert code(http.post("/v1/completions", json=COMPLETION, headers={"Origin": origin})) == (403, "wrong_origin")
    own = str(http.base_url).rstrip("/")
    assert http.post("/v1/completions", json=COMPLETION, headers={"Origin": own}).status_code == 200
    # what a form of any site could send without asking first
    plain = http.post("/v1/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert code(plain) == (400, "invalid_content_type")


def test_a_key_is_asked_for_where_one_is_set(dsn, model):
    with serving(dsn, "--api-key", KEY) as client:
        for given in (None, f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", KEY, "Bearer \xe9"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            assert code(client.get("/v1/models", headers=headers)) == (401, "invalid_api_key")
            assert code(client.post("/v1/completions", json=COMPLETION, headers=headers)) == (401, "invalid_api_key")
            assert client.get("/api/anything", headers=headers).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/").status_code == 200, "the page is the same for everybody; its data are not"


def test_a_key_may_have_any_letters(dsn, model):
    key = "schlüssel-日本"
    with serving(dsn, "--api-key", key) as client:
        for given, status in ((key, 200), ("schlussel-日本", 401)):
            headers = {"Authorization": f"Bearer {given}".encode()}
            assert client.get("/v1/models", headers=headers).status_code == status


def start(dsn: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loaders", "serve", "--dsn", dsn, "--port", "0", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_it_does_not_start_where_others_can_connect_without_a_key(dsn):
    done = start(dsn, "--host", "0.0.0.0")
    assert done.returncode == 1
    assert "--api-key" in done.stderr


def test_it_says_what_is_wrong_with_the_database(new_database):
    done = start(new_database("template0"))
    assert done.returncode == 1
    assert "CREATE EXTENSION pg_gpt2" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_brings_the_model_that_ships(new_database):
    """Once: the second time it is there."""
    dsn = new_database()
    for _ in range(2):
        with serving(dsn, "--shipped") as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["postgresql-docs"]


@pytest.mark.parametrize(
    "value",
    [
        "'; DROP TABLE llm_param; --",
        '"; DROP TABLE llm_param; --',
        "$$; DROP TABLE llm_param; $$",
        "{llm_param} %s %(name)s %% {} {0}",
        "\\'; DROP TABLE llm_param; --",
        "x' OR '1'='1",
    ],
)
def test_no_value_becomes_a_part_of_a_statement(http, module_conn, value):
    count = "SELECT count(*) FROM llm_param"
    before = module_conn.execute(count).fetchone()
    answers = [
        http.post("/v1/completions", json=COMPLETION | {"model": value}),
        http.get(f"/v1/models/{value}".replace("%", "%25")),
        http.post("/v1/completions", json=COMPLETION | {"prompt": value, "echo": True}),
        http.post("/v1/completions", json=COMPLETION | {"stop": value, "choices": None}),
        http.post("/v1/completions", json=COMPLETION | {"choices": [value], "max_tokens": 60}),
        http.post("/v1/completions", json=COMPLETION | {value: 1}),
        http.post("/v1/embeddings", json={"model": MODEL, "input": [value]}),
        http.post("/v1/embeddings", json={"model": MODEL, "input": [value], "pooling": value}),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 200, 200, 200, 400, 200, 400]
    assert answers[2].json()["choices"][0]["text"].startswith(value)
    assert answers[4].json()["choices"][0]["text"] == value
    assert module_conn.execute(count).fetchone() == before


@pytest.fixture(scope="module")
def tenants(dsn: str, model: str, module_conn: psycopg.Connection):
    """Roles that see models of their own, by the policies of docs/how-to/hide-models.md; the DSN's role may become these two."""
    module_conn.execute(POLICIES)
    for role, name in ((NORTH, "poet"), (SOUTH, "clerk")):
        module_conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        module_conn.execute("SELECT llm_copy_model(%s, %s)", (MODEL, f"{role}/{name}"))
        module_conn.execute("SELECT llm_grant_usage(%s, 'read')", [role])
    module_conn.execute("CREATE ROLE serve_gateway LOGIN NOINHERIT; CREATE ROLE serve_other")
    module_conn.execute(f"GRANT {NORTH}, {SOUTH} TO serve_gateway")
    yield
    for role in (NORTH, SOUTH, "serve_gateway", "serve_other"):
        module_conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture(scope="module")
def by_role(dsn: str, tenants: None):
    with serving(psycopg.conninfo.make_conninfo(dsn, user="serve_gateway"), "--role-header", HEADER) as client:
        yield client


def test_a_request_works_as_the_role_that_its_header_names(by_role):
    for role, own, other in ((NORTH, "poet", f"{SOUTH}/clerk"), (SOUTH, "clerk", f"{NORTH}/poet")):
        headers = {HEADER: role}
        assert [m["id"] for m in by_role.get("/v1/models", headers=headers).json()["data"]] == [f"{role}/{own}"]
        asked = COMPLETION | {"model": f"{role}/{own}"}
        assert by_role.post("/v1/completions", json=asked, headers=headers).status_code == 200
        for hidden in (other, MODEL, SLOW):
            asked = COMPLETION | {"model": hidden}
            for more in ({}, {"stream": True}):
                answer = by_role.post("/v1/completions", json=asked | more, headers=headers)
                assert code(answer) == (404, "model_not_found")
            assert code(by_role.get(f"/v1/models/{hidden}", headers=headers)) == (404, "model_not_found")
            asked = {"model": hidden, "input": "a"}
            assert code(by_role.post("/v1/embeddings", json=asked, headers=headers)) == (404, "model_not_found")


@pytest.mark.parametrize("role", ["", "none", "serve_other", "postgres", "absent", f"{NORTH}, {SOUTH}", f'"{NORTH}"'])
def test_no_other_role_is_taken(by_role, role):
    """Not the DSN's own either: a request without the header has not passed the proxy."""
    headers = {HEADER: role} if role else {}
    answer = by_role.get("/v1/models", headers=headers)
    assert answer.status_code in (401, 403)
    assert answer.json()["error"]["type"] in ("authentication_error", "permission_error")


def test_the_header_names_one_role_in_utf8(by_role, module_conn):
    """A proxy that adds its header to that of a client lets the client choose."""
    module_conn.execute('CREATE ROLE "größe-日本"; GRANT "größe-日本" TO serve_gateway')
    module_conn.execute("SELECT llm_grant_usage('größe-日本', 'read')")
    try:
        for names, status in ((["größe-日本"], 200), ([NORTH], 200), ([NORTH, SOUTH], 401), ([NORTH, NORTH], 401)):
            headers = [(HEADER.encode(), name.encode()) for name in names]
            assert by_role.get("/v1/models", headers=headers).status_code == status
        assert by_role.get("/v1/models", headers={HEADER: b"gr\xf6\xdfe"}).status_code == 403
    finally:
        module_conn.execute('DROP OWNED BY "größe-日本"; DROP ROLE "größe-日本"')


def test_a_role_does_not_stay_with_the_session(by_role, module_conn):
    """Whoever comes next has the same sessions, in any order."""
    for role in (NORTH, SOUTH, NORTH, NORTH, SOUTH) * 4:
        (only,) = by_role.get("/v1/models", headers={HEADER: role}).json()["data"]
        assert only["id"].startswith(role)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'serve_gateway' AND state <> 'idle'"
    assert module_conn.execute(idle).fetchone() == (0,)


@pytest.fixture
def asked_of_python(dsn: str) -> Callable[..., object]:
    """`asked_of_python(statement, writing)`: the statement in a session of `Database`, for a request without headers."""

    def run(statement: str, writing: bool, allowed: bool) -> object:
        async def work() -> object:
            database = Database(Settings(dsn=dsn, allow_training=allowed))
            await database.open()
            try:
                request = Request({"type": "http", "headers": []})
                async with database.session(request, writing=writing) as conn:
                    cursor = await conn.execute(statement)
                    return await cursor.fetchone() if cursor.description else None
            finally:
                await database.close()

        return asyncio.run(work())

    return run


def test_requests_only_read_unless_training_is_allowed(asked_of_python, model):
    written = "UPDATE llm_model_config SET preset = preset RETURNING 1"
    for allowed in (False, True):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            asked_of_python(written, writing=False, allowed=allowed)
    with pytest.raises(Forbidden, match="--allow-training"):
        asked_of_python(written, writing=True, allowed=False)
    assert asked_of_python(written, writing=True, allowed=True) == (1,)
