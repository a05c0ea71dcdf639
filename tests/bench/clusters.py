"""Servers beside one another: throw-away clusters of docker/cluster.sh by name, each made at its first use, on a core of its
own where one is given."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "docker" / "cluster.sh"


class Clusters:
    """`clusters["one"]`: the DSN of a database of that cluster that has the extension, as a superuser."""

    def __init__(self, cores: dict[str, int] | None = None) -> None:
        self.cores = cores or {}
        self._dsns: dict[str, str] = {}

    def __enter__(self) -> "Clusters":
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._dsns:
            subprocess.run([CLUSTER, "stop", self.directory(name)], check=True)

    def __getitem__(self, name: str) -> str:
        if name not in self._dsns:
            pinned = ["taskset", "-c", str(self.cores[name])] if name in self.cores else []
            self._dsns[name] = self._printed(*pinned, CLUSTER, "start", self.directory(name))
        return self._dsns[name]

    def directory(self, name: str) -> Path:
        """Where a cluster lies; the name ends in our process id: if we are killed, a later `cluster.sh run` removes it."""
        return Path(self._printed(CLUSTER, "state")) / f"test.{name}.{os.getpid()}"

    def host(self, name: str) -> str:
        """The directory of the socket of a cluster."""
        self[name]
        return str(self.directory(name) / "run")

    @staticmethod
    def _printed(*command: str | Path) -> str:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
