"""The HTTP server: says where it listens as soon as it does."""

import socket

import uvicorn

from .app import create_app
from .settings import Settings

GRACE = 5  # seconds that running requests have after an interrupt


class Server(uvicorn.Server):
    """uvicorn's, which prints its address."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/", flush=True)


def serve(settings: Settings) -> None:
    """Serve until interrupted."""
    Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
    ).run()
