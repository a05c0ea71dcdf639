"""What every request passes: from where it may come, the API key, the headers of a careful site."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, Forbidden, NoKey, respond
from .settings import LOOPBACK, Settings

GUARDED = ("/v1/", "/api/")  # where data are; the page itself is the same for everybody
POLICY = "; ".join(
    f"{what} {source}"
    for what, source in {
        "default-src": "'self'",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }.items()
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses what must not be let in, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await respond(Request(scope), error)(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.settings.on_loopback and (name := _name(host)) not in LOOPBACK:
            # A page from elsewhere, whose name was made to point at this machine, would be the site's own to a browser.
            raise Forbidden(f'this server is for its own machine, and does not answer as "{name}"', code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden(f"pages of {origin} may not use this server", code="wrong_origin")
        if self.settings.api_key is not None and path.startswith(GUARDED):
            kind, _, key = headers.get("authorization", "").partition(" ")
            came = key.encode("latin-1")  # the bytes: whoever sends other letters than ASCII's means UTF-8
            if kind.lower() != "bearer" or not hmac.compare_digest(came, self.settings.api_key.encode()):
                raise NoKey("the API key is missing or wrong: send it as Authorization: Bearer KEY")


def _name(host: str) -> str | None:
    """The name in a Host header, without port; None where it is no valid host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
