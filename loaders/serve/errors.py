"""What goes wrong as OpenAI's error objects, with the HTTP status that its clients know what to do about."""

import re

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

RETRY_AFTER = "1"  # seconds, when all sessions are busy


class ApiError(Exception):
    """An answer other than 200: its status, and what OpenAI's error object says."""

    status = 400
    kind = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or self.code


class NoKey(ApiError):
    """The API key is missing or another."""

    status, kind, code = 401, "authentication_error", "invalid_api_key"


class NoRole(ApiError):
    """The request does not say which role it works as."""

    status, kind, code = 401, "authentication_error", "missing_role"


class Forbidden(ApiError):
    """What this server does not do for anybody, or not for this role."""

    status, kind, code = 403, "permission_error", "forbidden"


class NoModel(ApiError):
    """There is no such model, or none for this role."""

    status, code = 404, "model_not_found"


class Busy(ApiError):
    """All sessions are taken, and enough requests wait."""

    status, kind, code = 429, "rate_limit_error", "server_busy"


class Unavailable(ApiError):
    """The database cannot be reached, or gave up."""

    status, kind, code = 503, "server_error", "database_unavailable"


class Failed(ApiError):
    """A defect, here or in the database."""

    status, kind, code = 500, "server_error", "internal_error"


# By SQLSTATE, or by its class where only that is listed. What OpenAI's clients try again is 429 and from 500 on.
KINDS: dict[str, type[ApiError]] = {
    "42704": NoModel,
    "42501": Forbidden,
    "25006": Forbidden,
    "22000": Failed,
    "0A": ApiError,
    "21": ApiError,
    "22": ApiError,
    "23": ApiError,
    "54": ApiError,
    "55": ApiError,
    "08": Unavailable,
    "28": Unavailable,
    "53": Unavailable,
    "55P03": Unavailable,
    "57": Unavailable,
}

ABSENT = ("42P01", "42883", "3F000")  # no such table, function or schema: our statements name only what pg_gpt2 has
OURS = "pg_gpt2: "  # before our messages; of a row after the first of a set PL/Python makes that the detail of its own
API_NAMES = {"topp": "top_p", "topk": "top_k"}  # of what SQL calls otherwise


def of_database(error: psycopg.Error) -> ApiError:
    """An error of the database as an answer: its own words, its hint, and its SQLSTATE as code where we have none."""
    state = error.sqlstate
    if state is None:
        if isinstance(error, psycopg.OperationalError):
            return Unavailable("the database cannot be reached")
        if isinstance(error, psycopg.DataError):  # such as U+0000 in a text
            return ApiError(str(error), code="invalid_value")
        return Failed(str(error))
    if state in ABSENT:
        why = f"the database does not have pg_gpt2 as it had when this server began: {error.diag.message_primary}"
        return Unavailable(f"{why}. CREATE EXTENSION pg_gpt2 in it, or start the server anew")
    kind = KINDS.get(state) or KINDS.get(state[:2]) or Failed
    message, detail = error.diag.message_primary or str(error), error.diag.message_detail or ""
    message = (detail if detail.startswith(OURS) else message).removeprefix(OURS)
    hint = error.diag.message_hint
    named = re.match(r"(\w+) must be ", message)
    param = API_NAMES.get(named[1], named[1]) if named else None
    return kind(f"{message}. {hint}" if hint else message, param=param, code=kind.code or state)


def body_of(error: ApiError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def respond(_: Request, error: Exception) -> Response:
    """The answer to a request that ended in `error`."""
    if isinstance(error, ClientDisconnect):  # nobody reads it
        return Response(status_code=499)
    if isinstance(error, psycopg.Error):
        error = of_database(error)
    if isinstance(error, HTTPException):  # Starlette's: no such path, no such method
        body = {"error": {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}}
        return JSONResponse(body, error.status_code, dict(error.headers or {}))
    if not isinstance(error, ApiError):
        error = Failed("the server made an error; its log says more")
    return JSONResponse(body_of(error), error.status, {"Retry-After": RETRY_AFTER} if isinstance(error, Busy) else None)
