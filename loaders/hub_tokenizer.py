"""The files of a tokenizer, as transformers 3 to 5 wrote them: GPT-2's byte-level BPE is read, any other is refused by name.

tokenizer.json decides where vocab.json says otherwise; added_tokens.json, special_tokens_map.json and tokenizer_config.json
add to either, and the last goes before it. `tokenizers` parses tokenizer.json, and says which ids its added tokens have.
"""

import json
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pg_gpt2.formats.source import shown
from pg_gpt2.formats.vocab import checked_vocab, parse_merges, parse_vocab
from pg_gpt2.tokenizer.added import AddedToken
from tokenizers import Tokenizer

from loaders.common import LoaderError, as_loader_error, read_json

MOST_BYTES = 1 << 20  # of a chat template, as llm_model_config has it
ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
PLAIN_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
DECODER = "added_tokens_decoder"  # of CONFIG
Parsed = TypeVar("Parsed")


@dataclass
class Files:
    """What they say: tokens and merges; the added tokens by id; which tokens have a role of ROLES; and the chat template."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[int, AddedToken] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)
    chat_template: str | None = None


def read_plain(vocab: Path, merges: Path) -> Files:
    """vocab.json and merges.txt (encoder.json and vocab.bpe in the original release)."""
    found = Files(_parsed(parse_vocab, vocab), _parsed(parse_merges, merges))
    if all(f"{letter}</w>" in found.ids for letter in string.ascii_lowercase):
        raise LoaderError(f"{vocab} ends words with </w> (end_of_word_suffix), which GPT-2 does not")
    return found


def _parsed(parse: Callable[[bytes, str], Parsed], path: Path) -> Parsed:
    with as_loader_error():
        return parse(path.read_bytes(), str(path))


def read_tokenizer_json(path: Path) -> Files:
    """tokenizer.json, added tokens included."""
    try:
        parsed = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the library raises nothing narrower
        raise LoaderError(f"{path} is not a tokenizer.json: {error}") from None
    if other := next(_other_settings(parsed), None):
        raise LoaderError(f"{path} {other}, which GPT-2's does not")
    model = parsed["model"]
    merges = [(left, right) for left, right in model["merges"]]
    added = {token["id"]: _added(token, path) for token in parsed["added_tokens"]}
    ids = model["vocab"] | {token.content: token_id for token_id, token in added.items()}
    with as_loader_error():
        return Files(checked_vocab(ids, str(path)), merges, added)


def _other_settings(parsed: dict[str, Any]) -> Iterator[str]:
    """What a tokenizer.json does that GPT-2's does not."""
    model, splitter, decoder = parsed["model"], parsed.get("pre_tokenizer") or {}, parsed.get("decoder") or {}
    if model["type"] != "BPE" or splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True):
        yield f"is not a byte-level BPE with GPT-2's pattern: it has model {model['type']} and pre_tokenizer {_name(splitter)}"
    if splitter.get("add_prefix_space"):
        yield "adds a space before the text (add_prefix_space)"
    settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    yield from (f"sets {setting}" for setting in settings if model.get(setting))
    if parsed.get("normalizer") is not None:
        yield f"normalizes text (normalizer {_name(parsed['normalizer'])})"
    if decoder.get("type", "ByteLevel") != "ByteLevel":
        yield f"has decoder {_name(decoder)}"
    if (processor := parsed.get("post_processor")) and _adds_tokens(processor):
        yield f"puts tokens beside those of the text (post_processor {_name(processor)})"


def _name(setting: dict[str, Any]) -> str:
    return setting.get("type", "none")


def _adds_tokens(processor: dict[str, Any]) -> bool:
    if processor["type"] == "ByteLevel":
        return False
    if processor["type"] == "Sequence":
        return any(map(_adds_tokens, processor["processors"]))
    return processor["type"] != "TemplateProcessing" or any("SpecialToken" in piece for piece in processor["single"])


def _added(fields: Any, path: Path, *, special: bool = False) -> AddedToken:
    """A token as the JSON in a file has it, of Hugging Face; what is not said is as for its AddedToken."""
    if not isinstance(fields, dict) or not isinstance(content := fields.get("content"), str):
        raise LoaderError(f"{path} has a token that is no object with a content: {shown(fields)}")
    special = special or bool(fields.get("special"))
    flags = {name: bool(fields.get(name)) for name in ("lstrip", "rstrip", "single_word")}
    return AddedToken(content, special, **flags, normalized=bool(fields.get("normalized", not special)))


def read_directory(directory: Path) -> Files:
    """The tokenizer of a directory of transformers, or of the original release; LoaderError where there is none."""
    config = _read_object(directory / CONFIG)
    for setting in ("add_prefix_space", "add_bos_token", "add_eos_token"):
        if config.get(setting):
            raise LoaderError(f"{directory / 'tokenizer_config.json'} sets {setting}, which GPT-2's tokenizer does not")
    if (directory / "tokenizer.json").exists():
        found = read_tokenizer_json(directory / "tokenizer.json")
    else:
        found = _read_plain_files(directory, config.get("tokenizer_class"))
    named = _named(directory / CONFIG)
    if DECODER not in config:
        named |= _named(directory / "special_tokens_map.json")
    beside = _added_beside(directory, config, named)
    token_of = {token_id: token for token, token_id in found.ids.items()}
    for token_id, token in beside:
        if token.content not in found.ids:
            if (taken := token_of.setdefault(token_id, token.content)) != token.content:
                raise LoaderError(f"the files of {directory} give id {token_id} to {taken!r} and to {token.content!r}")
            found.ids[token.content] = token_id
    flags = {found.ids[token.content]: token for _, token in beside}
    found.added = found.added | flags if DECODER in config else flags | found.added
    for name, token in named.items():
        if token.content not in found.ids:
            print(f"{directory} has no id for {name} {token.content!r}, which is left out", file=sys.stderr)
            continue
        token_id = found.ids[token.content]
        said = found.added.setdefault(token_id, token)
        if not name.endswith("]"):  # those of a list are what is said of them elsewhere
            found.added[token_id] = said._replace(special=True)
        if name.removesuffix("_token") in ROLES:
            found.roles[name.removesuffix("_token")] = token_id
    found.chat_template = chat_template(directory)
    return found


def chat_template(directory: Path) -> str | None:
    """The template that transformers uses where none is named, if any: that of chat_template.jinja, which goes before what
    tokenizer_config.json has, one or a list of named ones."""
    said = _read_object(directory / CONFIG).get("chat_template")
    if (path := directory / TEMPLATE).exists():
        try:
            said = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise LoaderError(f"{path} is not UTF-8: {error}") from None
    elif isinstance(said, list) and all(isinstance(each, dict) for each in said):
        named = {str(each.get("name")): each.get("template") for each in said}
        if others := sorted(name for name in named if name != "default"):
            print(
                f"{directory} has chat templates for other uses, which are left out: {', '.join(others)}",
                file=sys.stderr,
            )
        said = named.get("default")
    if said is None:
        return None
    if not isinstance(said, str):
        raise LoaderError(f"{directory / 'tokenizer_config.json'} has a chat_template that is no text")
    if len(said.encode(errors="replace")) > MOST_BYTES:
        raise LoaderError(f"the chat template of {directory} is longer than {MOST_BYTES:,} bytes")
    return said


def _read_plain_files(directory: Path, tokenizer_class: str | None) -> Files:
    files = [(directory / vocab, directory / merges) for vocab, merges in PLAIN_FILES]
    found = next((both for both in files if both[0].exists() and both[1].exists()), None)
    if found is None:
        raise LoaderError(f"{directory} has neither vocab.json and merges.txt nor tokenizer.json")
    if tokenizer_class not in (None, *CLASSES):
        raise LoaderError(
            f"{directory / 'tokenizer_config.json'} has tokenizer_class {tokenizer_class}; GPT-2's is {CLASSES[0]}"
        )
    return read_plain(*found)


def _named(path: Path) -> dict[str, AddedToken]:
    """The special tokens that the JSON object in a file names, by what it calls them; those of a list have numbers."""
    said = _read_object(path)
    found = {f"{role}_token": said.get(f"{role}_token") for role in ROLES}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = said.get(key) or []
        if not isinstance(more, dict | list):
            raise LoaderError(f"{path} has {key} that are no list: {shown(more)}")
        listed = {f"{key}[{n}]": token for n, token in enumerate(more)}
        found |= {f"{key}.{name}": token for name, token in more.items()} if isinstance(more, dict) else listed
    return {
        name: _added({"content": token} if isinstance(token, str) else token, path, special=True)
        for name, token in found.items()
        if token
    }


def _added_beside(
    directory: Path, config: Mapping[str, Any], named: Mapping[str, AddedToken]
) -> list[tuple[int, AddedToken]]:
    """(id, token) of the added tokens that are not in tokenizer.json, which it may have, too."""
    if DECODER in config:
        path, said = directory / CONFIG, config[DECODER]
        if not isinstance(said, dict):
            raise LoaderError(f"{path} has an {DECODER} that is no object: {shown(said)}")
        found = [(_number(token_id), _added(fields, path)) for token_id, fields in said.items()]
    else:
        path, special = directory / "added_tokens.json", {token.content for token in named.values()}
        found = [
            (token_id, AddedToken(content, content in special, normalized=content not in special))
            for content, token_id in _read_object(path).items()
        ]
    if found:
        with as_loader_error():
            checked_vocab({token.content: token_id for token_id, token in found}, str(path))
    return found


def _number(text: str) -> Any:
    """An id that is a key of a JSON object; the text, where it is none."""
    try:
        return int(text)
    except ValueError:
        return text


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no such file."""
    return read_json(path) if path.exists() else {}
