"""Weights in files of every kind that GPT-2s come in, one module a kind: each says what the file says, under its own names.

hub_model.py makes a model of it. A directory is read as transformers does: its model.safetensors, and only without that shards of
an index, which an earlier save may have left; then pytorch_model.bin, nanoGPT's ckpt.pt, or a GGUF file that is alone.
"""

from pathlib import Path

from pg_gpt2.formats.source import LFS_POINTER

from loaders.common import LoaderError, read_json
from loaders.weights import gguf_file, llmc_file, safetensors_file, torch_file
from loaders.weights.tensors import Weights

INDEX = ".index.json"


def read(source: Path) -> Weights:
    """What a file says, or a directory; LoaderError when it is of no kind that is read here."""
    files = files_of(source) if source.is_dir() else [source]
    found = [_read_file(path) for path in files]
    tensors = [tensor for part in found for tensor in part.tensors]
    first = found[0]
    if first.fields is None:
        first.fields, first.described = read_json(files[0].parent / "config.json"), "config.json"
        generation = files[0].parent / "generation_config.json"
        first.generation = read_json(generation) if generation.exists() else None
    first.tensors = tensors
    return first


def files_of(directory: Path) -> list[Path]:
    """The file of a directory that has the weights, or all shards of it."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            return [directory / name]
        if (directory / f"{name}{INDEX}").exists():
            return _shards(directory / f"{name}{INDEX}")
    if (directory / "ckpt.pt").exists():
        return [directory / "ckpt.pt"]
    alone = sorted(directory.glob("*.gguf"))
    if len(alone) > 1:
        raise LoaderError(f"{directory} has {len(alone)} GGUF files; name one of them, such as {alone[0]}")
    if not alone:
        raise LoaderError(f"{directory} has no model.safetensors, pytorch_model.bin, ckpt.pt or GGUF file")
    return alone


def _shards(index: Path) -> list[Path]:
    said = read_json(index).get("weight_map")
    found = [*said.values()] if isinstance(said, dict) else []
    if not found or not all(isinstance(name, str) and name.isprintable() and Path(name).name == name for name in found):
        raise LoaderError(f"{index} does not name files of its own directory")
    names = sorted(set(found))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise LoaderError(f"{index} names {missing[0]}, which is not there")
    return [index.parent / name for name in names]


def _read_file(path: Path) -> Weights:
    """By what it begins with: names of files are not to be relied on."""
    start = beginning(path)
    for kind in (gguf_file, llmc_file, torch_file):
        if start.startswith(kind.MAGIC):
            return kind.read(path)
    return safetensors_file.read(path)


def beginning(path: Path) -> bytes:
    """The bytes that say of which kind a file is; LoaderError when it is not there itself, but a pointer of git-LFS."""
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise LoaderError(
            f"{path} is a git-LFS pointer: it names a large file, and does not hold it; run `git lfs pull` in its"
            " repository, or download the file itself"
        )
    return start
