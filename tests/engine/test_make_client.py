"""The generator of the synchronous client: `async` and `await` go with all that they brought, and nothing else changes."""

import ast
from pathlib import Path

import pytest

from docs.make_client import synchronous

CLIENT = Path(__file__).resolve().parents[2] / "loaders" / "pg_llm_client"
HEADER = '"""The synchronous one."""\n'


def converted(code):
    """The code behind a module's docstring, converted."""
    return synchronous(f'"""The asynchronous one."""\n{code}', HEADER).removeprefix(HEADER)


@pytest.mark.parametrize(
    ("asynchronous", "expected"),
    [
        ("await f()", "f()"),
        ("async with a() as b, c(): ...", "with a() as b, c(): ..."),
        ("async for row in rows: ...", "for row in rows: ..."),
        ("[x async for x in await f()]", "[x for x in f()]"),
        ("(await (await f()).g(1))[0]", "f().g(1)[0]"),
        ("f(*(await g()).h)", "f(*g().h)"),
        ("f(await g())", "f(g())"),
        ("(await f() + 1) * 2", "(f() + 1) * 2"),
        ("(await f(), 2)", "(f(), 2)"),
        ("x: AsyncGenerator[list[int], None]", "x: Generator[list[int], None, None]"),
        ("x: AsyncIterator[int] = aclosing(y)", "x: Iterator[int] = closing(y)"),
        ("f(1)  # AsyncConnection: `await f()`, an await", "f(1)  # Connection: `f()`, an await"),
        ("x = 'await AsyncConnection'", "x = 'await AsyncConnection'"),
    ],
)
def test_what_is_asynchronous_goes(asynchronous, expected):
    assert converted(f"async def a():\n    {asynchronous}\n") == f"def a():\n    {expected}\n"


def test_docstrings_speak_of_the_synchronous_client():
    source = '''\
class AsyncPGLLMClient:
    """To await is human; see `async with`.

    >>> client = AsyncPGLLMClient(await connect())
    >>> await client.generate("I")
    """
'''
    expected = '''\
class PGLLMClient:
    """To await is human; see `with`.

    >>> client = PGLLMClient(connect())
    >>> client.generate("I")
    """
'''
    assert converted(source) == expected


def test_a_statement_that_now_fits_in_one_line_has_one():
    arguments = ", ".join(f"argument{n}" for n in range(8))
    source = f"async def f():\n    return await g(\n        (await h()).k({arguments})\n    )\n"
    assert converted(source) == f"def f():\n    return g(h().k({arguments}))\n"


@pytest.mark.parametrize(
    "code",
    [
        "f(\n    a,\n    b,\n)\n",
        "f(\n    a,  # why\n    b\n)\n",
        'f("""a\nb""",\n    c)\n',
        f"f(\n    {', '.join(['argument'] * 13)}\n)\n",
    ],
    ids=["comma behind the last", "comment", "string of two lines", "too long"],
)
def test_other_statements_keep_their_lines(code):
    assert converted(code) == code


@pytest.mark.parametrize("name", ["AsyncPipeline", "asyncio", "anext", "__aenter__"])
def test_a_name_without_a_synchronous_one_is_an_error(name):
    with pytest.raises(ValueError, match=f"line 2: .* {name}"):
        converted(f"{name}\n")


def test_both_clients_have_the_same_methods():
    def methods(name):
        tree = ast.parse((CLIENT / name).read_text())
        functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
        return {f.name: [a.arg for a in (*f.args.args, *f.args.kwonlyargs)] for f in functions}

    assert methods("client.py") == methods("aio.py")
