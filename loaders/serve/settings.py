"""What the command line of `pg-gpt2 serve` says."""

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Everything that `create_app` needs."""

    dsn: str = ""
    host: str = "127.0.0.1"
    port: int = 8642
    api_key: str | None = None
    """What a request for data must bring; None = none is asked for."""
    role_header: str | None = None
    """The header that names the role a request works as; None = that of the DSN."""
    allow_training: bool = False
    """Whether a request may write; otherwise its transaction is read-only."""
    pool_size: int = 8
    """Generations at a time; each has a session of the database."""
    queue_size: int = 32
    """Requests that wait for one of these sessions; one more is turned away."""
    queue_timeout: float = 60.0
    """Seconds that a request waits."""

    @property
    def on_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        return self.host in LOOPBACK
