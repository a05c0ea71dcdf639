"""Vocabularies as rows, and the cache of tokenizers by version.

A vocabulary has 100,000 rows, too many to digest at every call: statement triggers add a row to llm_bpe_version instead, and
the version is that table, which DROP EXTENSION may have made anew, and the ids that are visible there, usually one. Where
row-level security may show the caller a part of a vocabulary, the visible rows are digested after all.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from .. import host
from ..errors import DuplicateObject, InvalidParameter, WrongState, require
from ..limits import MOST_TOKEN_BYTES
from ..tokenizer.added import AddedToken
from ..tokenizer.bpe import Tokenizer, token_bytes
from ..tokenizer.tables import Tables, made_of
from . import db, resources
from .importer import collecting_nothing
from .storage import adapters, store, vocabulary_file

BYTES_A_ROW, COPIES = 250, 6  # of memory that a token or a merge takes beside its text, and how often that is there
TOKEN = "token_id, token, score, bytes, added, special, lstrip, rstrip, single_word, normalized, roles"
MERGE = 'rank, "left", "right", pair'
MOST = 8  # tokenizers that a session keeps
AT_ONCE = 512  # tokens read as one array, which may have 1 GB
Made = TypeVar("Made")

# Whether a policy may show some rows of a vocabulary and not others: its expression has a column that is not the first of its
# table, which is the model here. Policies by model alone, as most are, show all or nothing, and cost no digest.
DIFFERS_BY_ROW = (
    "EXISTS (SELECT FROM pg_policy AS p, regexp_matches(p.polqual::text, ':varattno (-?[0-9]+)', 'g') AS columns"
    " WHERE p.polrelid IN ('{schema}.llm_bpe_vocab'::regclass, '{schema}.llm_bpe_merges'::regclass) AND columns[1] <> '1')"
)

# Name and what else was asked for -> version, and what was made.
_Cache: TypeAlias = OrderedDict[tuple[Any, ...], tuple[str, Made]]
_cache: _Cache[Tokenizer] = OrderedDict()
_lacking: _Cache[tuple[int, ...]] = OrderedDict()


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of `model` at the version that this statement sees; 55000 when it has no vocabulary, 42704 when there
    is no model of the name either."""
    found = find(model)
    if found is None:
        store.config(model)
        owner = adapters.base_of(model) or model
        raise WrongState(
            f'model "{owner}" has no vocabulary',
            hint="Load one: pg_llm_load_bpe_vocab and pg_llm_load_bpe_merges on the server, pg-gpt2 ingest-tokenizer"
            f" --model {owner} as a client, or learn one with llm_train_bpe. Functions on token ids work without.",
        )
    return found


def find(model: str) -> Tokenizer | None:
    """The tokenizer of `model`, or None when it has no vocabulary. An adapter uses that of its base."""
    return _kept(_cache, model, _read)


def lacking(model: str, vocab: int) -> tuple[int, ...]:
    """The ids below `vocab` that are no tokens of the vocabulary of `model`, as Tokenizer.lacking has them; none where it has no
    vocabulary. To learn these takes a hundredth of the time that reading the vocabulary does."""
    return _kept(_lacking, model, _read_lacking, vocab) or ()


def _kept(cache: _Cache[Made], model: str, read: Callable[..., Made], *more: int) -> Made | None:
    """What `read` makes of the vocabulary that `model` uses, at the version that this statement sees; None when there is none."""
    name, version = _version(model)
    key = (name, *more)
    found = cache.get(key)
    if version is not None and (found is None or found[0] != version):
        with collecting_nothing():
            found = _read_whole(name, version, read, more)
    if version is None or found is None:
        return None
    cache[key] = found
    cache.move_to_end(key)
    while len(cache) > MOST:
        cache.popitem(last=False)
    return found[1]


def _read_whole(name: str, version: str, read: Callable[..., Made], more: tuple[int, ...]) -> tuple[str, Made] | None:
    """What `read` makes of the vocabulary of `name`, and a version that it is of; None when there is none any more. Each of the
    statements that read may see changes that were committed after those before it: then it is read again.

    Others may change their vocabularies, and so the version, all the time: the rows tell whether it was this one.
    """
    while True:
        made = read(version, name, *more)
        _, now = _version(name)
        if now == version:
            return version, made
        rows = _digest(name)
        _, now = _version(name)
        if now is None:
            return None
        version, made = now, read(now, name, *more)
        if _digest(name) == rows:
            return version, made


def cached() -> list[tuple[str, str, int, bool]]:
    """(model, version, bytes, whether these are mapped) of the tokenizers in memory whose vocabulary the caller may see, least
    recently used first."""
    if not db.may_read("llm_bpe_vocab"):
        return []
    rows = db.query(
        "SELECT m.name FROM unnest($1) AS m (name) WHERE NOT row_security_active('{schema}.llm_bpe_vocab')"
        " OR (SELECT true FROM {schema}.llm_bpe_vocab AS v WHERE v.model = m.name ORDER BY v.token_id LIMIT 1)",
        ["text[]"],
        [model for (model,) in _cache],
    )
    seen = {row["name"] for row in rows}
    return [
        (model, version, tokenizer.tables.nbytes, tokenizer.tables.are_mapped)
        for (model,), (version, tokenizer) in _cache.items()
        if model in seen
    ]


def forget() -> None:
    """Give up all tokenizers in memory."""
    _cache.clear()
    _lacking.clear()


def _spare() -> None:
    """Give up what was made of vocabularies to save time, such as the tables of constraints, and keep the vocabularies."""
    for _, tokenizer in _cache.values():
        tokenizer.kept.clear()


resources.spared.append(_spare)


def _version(model: str) -> tuple[str, str | None]:
    """Whose vocabulary `model` uses, and the version of that; None when the caller sees no token of it. It is whether the caller
    sees merges, and what tells the changes of all vocabularies apart; or one word, the digest of rows.

    The first row is asked for by the key: for EXISTS, or LIMIT alone, the planner may scan a table that many models share. Under
    row-level security it does so where the key is compared with an expression, which OFFSET 0 makes a value first.

    It names all columns, so that a role which may read some of them only gets nothing of what is kept, either.
    """
    row = db.row(
        "SELECT name, concat_ws(' ', coalesce("
        f"(SELECT 'merges' FROM (SELECT model, {MERGE} FROM {{schema}}.llm_bpe_merges) AS m"
        " WHERE m.model = name ORDER BY m.rank LIMIT 1), 'none'),"
        " '{schema}.llm_bpe_version'::regclass::oid,"
        " (SELECT string_agg(s.id::text, ' ' ORDER BY s.id) FROM {schema}.llm_bpe_version s)) AS version,"
        " (row_security_active('{schema}.llm_bpe_vocab') OR row_security_active('{schema}.llm_bpe_merges'))"
        f" AND {DIFFERS_BY_ROW} AS filtered"
        " FROM (SELECT coalesce((SELECT base FROM {schema}.llm_adapter WHERE model = $1), $1) AS name OFFSET 0) AS owner"
        " CROSS JOIN LATERAL"
        f" (SELECT FROM (SELECT model, {TOKEN} FROM {{schema}}.llm_bpe_vocab) AS v"
        " WHERE v.model = name ORDER BY v.token_id LIMIT 1) AS any_token",
        ["text"],
        model,
    )
    if row is None:
        return model, None
    return row["name"], _digest(row["name"]) if row["filtered"] else row["version"]


def _digest(model: str) -> str:
    row = db.row(
        "SELECT (SELECT md5(string_agg(concat_ws(' ', ctid, xmin, cmin), E'\\n' ORDER BY token_id))"
        " FROM {schema}.llm_bpe_vocab WHERE model = $1)"
        " || coalesce((SELECT md5(string_agg(concat_ws(' ', ctid, xmin, cmin), E'\\n' ORDER BY rank))"
        " FROM {schema}.llm_bpe_merges WHERE model = $1), '') AS version",
        ["text"],
        model,
    )
    return (row or {})["version"]


def touch() -> None:
    """Give the vocabulary a new version, and remove what earlier changes left, except what others are removing now."""
    row = db.row("INSERT INTO {schema}.llm_bpe_version DEFAULT VALUES RETURNING id")
    level = db.row("SELECT current_setting('transaction_isolation') AS level")
    # In the other levels a row that somebody has removed meanwhile is an error.
    if row and level == {"level": "read committed"}:
        db.run(
            "DELETE FROM {schema}.llm_bpe_version WHERE id IN"
            " (SELECT id FROM {schema}.llm_bpe_version WHERE id < $1 FOR UPDATE SKIP LOCKED)",
            ["int8"],
            row["id"],
        )


def _require_room(model: str) -> None:
    """Refuse a vocabulary that does not fit into memory (53200), or has a token that is too long (22023): somebody who may
    write a vocabulary must not be able to fill the memory of those who read it."""
    pieces = 'octet_length("left") + octet_length("right")'
    row = db.row(
        "SELECT v.n + m.n AS rows, v.size + m.size AS size, greatest(v.longest, m.longest / 2) AS longest FROM"
        " (SELECT count(*) AS n, coalesce(sum(octet_length(bytes)), 0)::bigint AS size, max(octet_length(bytes)) AS longest"
        "  FROM {schema}.llm_bpe_vocab WHERE model = $1) AS v,"
        f" (SELECT count(*) AS n, coalesce(sum({pieces}), 0)::bigint AS size, max({pieces}) AS longest"
        "  FROM {schema}.llm_bpe_merges WHERE model = $1) AS m",
        ["text"],
        model,
    )
    rows, size, longest = (row or {}).values()
    _require_short(model, longest or 0)
    host.require_memory(BYTES_A_ROW * rows + COPIES * size, f'the vocabulary of "{model}"')


def _require_short(model: str, size: int) -> None:
    if size > MOST_TOKEN_BYTES:
        raise InvalidParameter(
            f'the vocabulary of "{model}" has a token of {size} bytes, and one takes {MOST_TOKEN_BYTES}',
            hint="Delete it, with the merges that lead to it; the longest of GPT-2 has 128.",
        )


def _read(version: str, model: str) -> Tokenizer:
    """From the file that sessions share, which the first to need a version writes, or else of the rows."""
    file = vocabulary_file.file_of(model, version)
    tables = file and vocabulary_file.attached(file)
    if file and tables is None and not db.has_written():
        with file.lock(vocabulary_file.WAIT) as is_ours:
            tables = vocabulary_file.attached(file) or _made(model)
            if is_ours and len(tables.ids) >= vocabulary_file.LEAST_TOKENS:
                tables = vocabulary_file.build(file, tables, lambda: _version(model) == (model, version)) or tables
    return Tokenizer(tables or _made(model))


def _made(model: str) -> Tables:
    """The tables of the rows that the caller sees."""
    _require_room(model)
    arrays = "SELECT array_agg(token_id) AS ids, array_agg(bytes) AS data FROM {schema}.llm_bpe_vocab WHERE model = $1"
    tokens: dict[int, bytes] = {}
    for row in db.batches(f"{arrays} GROUP BY token_id / {AT_ONCE}", ["text"], model):
        tokens |= zip(row["ids"], row["data"])
    pairs = 'SELECT "left", "right" FROM {schema}.llm_bpe_merges WHERE model = $1 ORDER BY rank'
    merges = [(row["left"], row["right"]) for row in db.batches(pairs, ["text"], model)]
    rows = db.query(
        "SELECT token_id, added, 'eos' = ANY (roles) AS is_eos, token AS content,"
        " special, lstrip, rstrip, single_word, normalized FROM {schema}.llm_bpe_vocab"
        " WHERE model = $1 AND (added OR 'eos' = ANY (roles))",
        ["text"],
        model,
    )
    eos = next((row["token_id"] for row in rows if row["is_eos"]), None)
    added = {row["token_id"]: AddedToken(*(row[name] for name in AddedToken._fields)) for row in rows if row["added"]}
    return made_of(tokens, merges, eos, added)


def _read_lacking(version: str, model: str, vocab: int) -> tuple[int, ...]:
    """From the file that sessions share, if it is there, or else of the rows."""
    file = vocabulary_file.file_of(model, version)
    if file and (tables := vocabulary_file.attached(file)):
        return tables.lacking(vocab)
    row = db.row(
        "SELECT CASE WHEN $2 > (SELECT count(*) FROM {schema}.llm_bpe_vocab WHERE model = $1 AND token_id < $2)"
        " THEN ARRAY(SELECT id FROM generate_series(0, $2 - 1) AS id WHERE NOT EXISTS"
        " (SELECT FROM {schema}.llm_bpe_vocab WHERE model = $1 AND token_id = id) ORDER BY id) END AS ids",
        ["text", "int4"],
        *(model, vocab),
    )
    return tuple((row or {})["ids"] or ())


def _empty(table: str, model: str) -> None:
    """Delete what there is: whoever only adds vocabularies needs no right to delete."""
    key = "token_id" if table == "llm_bpe_vocab" else "rank"
    if db.row(f"SELECT 1 FROM {{schema}}.{table} WHERE model = $1 ORDER BY {key} LIMIT 1", ["text"], model):
        db.run(f"DELETE FROM {{schema}}.{table} WHERE model = $1", ["text"], model)


def copy(source: str, target: str) -> None:
    """Give `target` a copy of the vocabulary of `source`, unless it has one."""
    if db.row("SELECT 1 FROM {schema}.llm_bpe_vocab WHERE model = $1 ORDER BY token_id LIMIT 1", ["text"], target):
        return
    db.run(
        f"INSERT INTO {{schema}}.llm_bpe_vocab (model, {TOKEN}) SELECT $2, {TOKEN} FROM {{schema}}.llm_bpe_vocab"
        " WHERE model = $1",
        ["text", "text"],
        source,
        target,
    )
    db.run(
        f"INSERT INTO {{schema}}.llm_bpe_merges (model, {MERGE}) SELECT $2, {MERGE} FROM {{schema}}.llm_bpe_merges"
        " WHERE model = $1",
        ["text", "text"],
        source,
        target,
    )
    copy_chat_template(source, target)


def copy_chat_template(source: str, target: str) -> None:
    """Give `target`, which has a configuration, the chat template of `source`, if that has one."""
    if row := _with_chat_template(source):
        set_template = "UPDATE {schema}.llm_model_config SET chat_template = $2 WHERE model = $1"
        db.run(set_template, ["text", "text"], target, row["chat_template"])


def forget_chat_template(model: str) -> int:
    """Remove the chat template of `model`, which marks turns with tokens of its vocabulary; 1 where there was one."""
    if not _with_chat_template(model):  # else a caller would need the right to change a configuration
        return 0
    return db.run("UPDATE {schema}.llm_model_config SET chat_template = NULL WHERE model = $1", ["text"], model)


def _with_chat_template(model: str) -> db.Row | None:
    return db.row(
        "SELECT chat_template FROM {schema}.llm_model_config WHERE model = $1 AND chat_template IS NOT NULL",
        ["text"],
        model,
    )


def _refuse_adapter(model: str) -> None:
    """Refuse (55000) to give an adapter a vocabulary."""
    base = adapters.base_of(model)
    if base is not None:
        raise WrongState(
            f'"{model}" is an adapter, which uses the vocabulary of its base "{base}"',
            hint="Give the base the vocabulary; llm_adapter_merge makes a model that can have its own.",
        )


def replace_tokens(model: str, vocab: Mapping[str, int]) -> None:
    """Put `vocab`, token in printable form -> id, in the place of the model's tokens."""
    require(model=model)
    _refuse_adapter(model)
    tokens = [token_bytes(token) for token in vocab]
    _require_short(model, max(map(len, tokens), default=0))
    _empty("llm_bpe_vocab", model)
    forget_chat_template(model)
    db.run(
        "INSERT INTO {schema}.llm_bpe_vocab (model, token_id, token, bytes)"
        " SELECT $1, token_id, token, bytes FROM unnest($2, $3, $4) AS new (token_id, token, bytes)",
        ["text", "int4[]", "text[]", "bytea[]"],
        *(model, list(vocab.values()), list(vocab), tokens),
    )


def replace_merges(model: str, merges: Sequence[tuple[str, str]]) -> None:
    """Put `merges`, best first, in the place of the model's merges."""
    require(model=model)
    _refuse_adapter(model)
    _empty("llm_bpe_merges", model)
    db.run(
        'INSERT INTO {schema}.llm_bpe_merges (model, rank, "left", "right", pair)'
        " SELECT $1, rank - 1, l, r, l || ' ' || r FROM unnest($2, $3) WITH ORDINALITY AS new (l, r, rank)",
        ["text", "text[]", "text[]"],
        *(model, [left for left, _ in merges], [right for _, right in merges]),
    )


def require_none(model: str) -> None:
    """Refuse (42710) a `model` that has a vocabulary already, and (55000) an adapter."""
    _refuse_adapter(model)
    if db.row("SELECT 1 FROM {schema}.llm_bpe_vocab WHERE model = $1 ORDER BY token_id LIMIT 1", ["text"], model):
        raise DuplicateObject(
            f'model "{model}" already has a vocabulary',
            hint="Choose another name, or DELETE its rows from llm_bpe_vocab and llm_bpe_merges first.",
        )
