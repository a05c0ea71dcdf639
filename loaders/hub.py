"""Models of the Hugging Face hub, in the hub library's own cache: downloads are resumed where they stopped, and checked by hash.

The hub library does not resume a download that another process began, and checks nothing but sizes; gpt2-xl is 6.4 GB. So the
files are fetched here, and put where that library, and transformers, look for them. Without a network, or with
HF_HUB_OFFLINE=1, what the cache has is used.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from huggingface_hub import constants, get_token

from loaders.common import LoaderError, bar

WANTED = (
    "config.json", "generation_config.json",
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
WEIGHTS = (
    ("*.safetensors", "*.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
    ("*.gguf",),
)  # of the kinds that a repository has, the first
WHOLE = ("model.safetensors", "pytorch_model.bin")  # beside which shards are not looked at
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # of an adapter, all; of a model, none
OF_ADAPTER = (*ADAPTER, "tokenizer_config.json", "chat_template.jinja")  # and what tells its chat template
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing, before it gives up
PAUSE = 0.5  # seconds before the next attempt, doubled each time
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a snapshot. Its blob in the cache is named by its digest: sha256, or of a small file git's sha1."""

    name: str
    size: int
    digest: str


class Repository:
    """A model's folder in the cache: blobs/ by digest, snapshots/ by commit with links to blobs, refs/ by branch or tag.

    Of its files, those of a model are wanted, with the weights in `file` if it is given; or those of an adapter.
    """

    def __init__(self, model: str, revision: str | None, file: str | None = None, *, adapter: bool = False) -> None:
        self.model, self.revision, self.file, self.adapter = model, revision or "main", file, adapter
        self.folder = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
        self._ref = self.folder / "refs" / self.revision

    def fetch(self) -> Path:
        """Download what the cache lacks of the revision, and check every file; the snapshot's directory."""
        if constants.HF_HUB_OFFLINE:
            return self.cached("HF_HUB_OFFLINE is set")
        try:
            commit, files = self.listing()
        except HTTPError as error:
            raise LoaderError(self._refusal(error)) from None
        except OSError as error:
            return self.cached(f"the hub does not answer: {error}")
        except (HTTPException, ValueError, KeyError, TypeError) as error:
            raise LoaderError(f"{constants.ENDPOINT} does not answer as a hub does: {error!r}") from None
        snapshot = self.folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)  # also for no files: whoever reads it says what it lacks
        for file in files:
            blob = self.folder / "blobs" / file.digest
            if blob.exists():
                check(blob, file.name)
            else:
                self._download(file, commit, blob)
            self._link(snapshot / file.name, blob)
        self._ref.parent.mkdir(parents=True, exist_ok=True)
        self._ref.write_text(commit)
        return snapshot

    def cached(self, reason: str) -> Path:
        """The directory of the snapshot that the cache has, every file checked; LoaderError, with `reason`, if it has none."""
        commit = self._ref.read_text().strip() if self._ref.exists() else self.revision
        snapshot = self.folder / "snapshots" / commit
        names = self._wanted([path.name for path in sorted(snapshot.iterdir())] if snapshot.exists() else [])
        if not names or (self.file and self.file not in names) or (self.adapter and ADAPTER[0] not in names):
            raise LoaderError(
                f"{self.model} is not a directory here, the cache ({self.folder}) does not have revision {self.revision} of a"
                f" hub model of that id, and {reason}"
            )
        for name in names:
            check((snapshot / name).resolve(), name)
        return snapshot

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Those of a repository's files that make an adapter, or a model: of several kinds of weights one, or the one named."""

        def matching(patterns: Sequence[str]) -> list[str]:
            return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

        if self.adapter:
            return matching(OF_ADAPTER)
        if self.file:
            return matching(WANTED) + [name for name in names if name == self.file]
        names = [name for name in names if name not in ADAPTER]
        weights = next(filter(None, map(matching, WEIGHTS)), [])
        weights = next(([name] for name in WHOLE if name in weights), weights)
        if len(weights) > 1 and weights[0].endswith(".gguf"):
            raise LoaderError(f"{self.model} has {len(weights)} GGUF files; name one with --file: {', '.join(weights)}")
        return matching(WANTED) + weights

    def listing(self) -> tuple[str, list[File]]:
        """The commit of the revision, and those of its files that are wanted, as the hub tells."""
        path = f"api/models/{quote(self.model)}/revision/{quote(self.revision, safe='')}?blobs=true"
        with urlopen(request(path), timeout=TIMEOUT) as answer:
            found = json.load(answer)
        entries = {entry["rfilename"]: entry for entry in found["siblings"] if "/" not in entry["rfilename"]}
        if self.file and self.file not in entries:
            raise LoaderError(f"{self.model} has no file {self.file} at revision {self.revision}")
        files = [
            File(name, entries[name]["size"], (entries[name].get("lfs") or {}).get("sha256") or entries[name]["blobId"])
            for name in self._wanted(list(entries))
        ]
        if not all(name.isalnum() for name in (found["sha"], *(file.digest for file in files))):
            raise ValueError("not a hash")
        return found["sha"], files

    def _refusal(self, error: HTTPError) -> str:
        if error.code in (401, 403, 404):
            return (
                f"{self.model} is not a directory here, nor a model of the hub that you may read at revision"
                f" {self.revision} (HTTP {error.code}); a private or gated one needs HF_TOKEN"
            )
        return f"the hub answers HTTP {error.code} {error.reason} for {self.model}; try again later"

    def _link(self, path: Path, blob: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, path.parent)
        if not (path.is_symlink() and os.readlink(path) == target):
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def _download(self, file: File, commit: str, blob: Path) -> None:
        """Download one file; it is `blob` only once it is complete and its hash is right."""
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.pg_gpt2")
        with open(partial, "ab") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LoaderError(f"{file.name} of {self.model} is being downloaded by another process") from None
            if output.tell() > file.size:
                output.truncate(0)
            free = shutil.disk_usage(blob.parent).free
            if file.size - output.tell() > free:
                raise LoaderError(f"{file.name} needs {file.size:,} bytes, and {blob.parent} has {free:,} left")
            url = f"{quote(self.model)}/resolve/{commit}/{quote(file.name)}"
            with bar(file.size, f"{self.model} {file.name}") as progress:
                progress.update(output.tell())
                for chunk in chunks(url, output.tell(), file.size):
                    if chunk is None:  # the server starts again from the beginning
                        output.truncate(0)
                        progress.reset()
                        continue
                    output.write(chunk)
                    progress.update(len(chunk))
            output.flush()
            check(partial, file.name, file.digest)
            partial.rename(blob)


def request(path: str) -> Request:
    """A request to the hub. The token goes to the hub alone, not to where it redirects."""
    found = Request(f"{constants.ENDPOINT}/{path}", headers={"User-Agent": "pg_gpt2"})
    if token := get_token():
        found.add_unredirected_header("Authorization", f"Bearer {token}")
    return found


def chunks(path: str, start: int, size: int) -> Iterator[bytes | None]:
    """The bytes of a file from `start` to `size`, over as many connections as it takes; None when it starts again from 0."""
    failures, furthest = 0, start
    while start < size:
        asked = request(path)
        asked.add_header("Range", f"bytes={start}-")
        problem: Exception | str = "the connection ended early"
        try:
            with urlopen(asked, timeout=TIMEOUT) as answer:
                if answer.status == 200 and start:
                    start = 0
                    yield None
                while start < size and (chunk := answer.read(min(CHUNK, size - start))):
                    start += len(chunk)
                    yield chunk
        except HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise LoaderError(f"{path}: HTTP {error.code} {error.reason}") from None
            problem = error
        except (OSError, HTTPException) as error:
            problem = error
        if start < size:
            failures = 1 if start > furthest else failures + 1
            furthest = max(start, furthest)
            if failures == ATTEMPTS:
                raise LoaderError(
                    f"{path}: {start:,} of {size:,} bytes came ({problem}); run the same command again to go on from there"
                )
            time.sleep(PAUSE * 2**failures)


def check(path: Path, name: str, digest: str | None = None) -> None:
    """Remove a file whose hash is not `digest`, by default its own name, and raise LoaderError."""
    expected = digest or path.name
    if len(expected) not in (40, 64):  # a name that the hub did not give: there is no hash to compare with
        return
    size = path.stat().st_size
    found = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file, bar(size, f"checking {name}") as progress:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            progress.update(len(chunk))
    if found.hexdigest() != expected:
        path.unlink()
        raise LoaderError(
            f"{name} is damaged: its hash is {found.hexdigest()}, and should be {expected}. It was removed; run"
            " the same command again to download it"
        )
