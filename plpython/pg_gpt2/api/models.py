"""llm_init_model, llm_copy_model, llm_drop_model: models as a whole."""

from .. import db, gpt2, store
from ..config import GPT2Config
from ..db import entry
from ..errors import InvalidParameter, NullNotAllowed, UndefinedObject

END_OF_TEXT = "<|endoftext|>"


@entry
def replace_preset(model: str) -> None:
    """Before a row is inserted into llm_model_config: make room when the name is a preset's."""
    db.run("DELETE FROM {schema}.llm_model_config WHERE model = $1 AND preset", ["text"], model)


@entry
def init_model(
    model: str | None,
    n_layer: int | None,
    n_head: int | None,
    d_model: int | None,
    n_positions: int | None,
    vocab: int | None,
    seed: int | None,
) -> None:
    """New random weights; nulls come from the configuration or vocabulary of that name."""
    if model is None or seed is None:
        raise NullNotAllowed(f"{'model' if model is None else 'seed'} must not be null", hint="Leave seed out for 0.")
    store.require_no_weights(model)
    wanted = {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "n_positions": n_positions}
    known = store.find_config(model)
    tokens, eos = _vocabulary(model)
    wanted["vocab"] = tokens or None if vocab is None else vocab
    for name, value in wanted.items():
        if value is None and known is not None:
            wanted[name] = getattr(known, name)
        if wanted[name] is None:
            raise NullNotAllowed(
                f'{name} must be given: there is no {"vocabulary" if name == "vocab" else "configuration"} of the name "{model}"',
                hint="Example: SELECT llm_init_model('tiny', n_layer => 4, n_head => 4, d_model => 128, n_positions => 64, vocab => 512).",
            )
    if wanted["vocab"] < tokens:
        raise InvalidParameter(
            f'vocab {wanted["vocab"]} is smaller than the vocabulary of "{model}", which has {tokens} tokens',
            hint="Leave vocab out to take the vocabulary's size.",
        )
    if eos is None and known is not None:
        eos = known.eos_token_id
    eos = None if eos is not None and eos >= wanted["vocab"] else eos
    config = GPT2Config(**wanted, eos_token_id=eos)
    store.register(model, config)
    params = gpt2.init_params(config, seed)
    store.insert_params(model, ((name, array.shape, lambda a, b, rows=array: rows[a:b]) for name, array in params.items()))


def _vocabulary(model: str) -> tuple[int, int | None]:
    """Number of ids (largest + 1) and end-of-text id of the vocabulary of `model`; 0, None without one."""
    row = db.row(
        "SELECT max(token_id) + 1 AS tokens, max(token_id) FILTER (WHERE token = $2) AS eos"
        " FROM {schema}.llm_bpe_vocab WHERE model = $1",
        ["text", "text"],
        model,
        END_OF_TEXT,
    )
    return ((row or {}).get("tokens") or 0, (row or {}).get("eos"))


@entry
def copy_model(source: str | None, target: str | None) -> None:
    """Configuration, weights, optimizer state and vocabulary under a new name, all in SQL."""
    config = store.config(source)
    if not store.has_weights(source):
        raise store.no_weights(source)
    store.require_no_weights(target)
    store.register(target, config)
    db.run(
        "INSERT INTO {schema}.llm_param (model, name, token_id, shape, data, grad, m, v, step)"
        " SELECT $2, name, token_id, shape, data, grad, m, v, step FROM {schema}.llm_param WHERE model = $1",
        ["text", "text"],
        source,
        target,
    )
    if db.row("SELECT 1 FROM {schema}.llm_bpe_vocab WHERE model = $1 LIMIT 1", ["text"], target):
        return
    db.run(
        "INSERT INTO {schema}.llm_bpe_vocab (model, token_id, token, score, bytes)"
        " SELECT $2, token_id, token, score, bytes FROM {schema}.llm_bpe_vocab WHERE model = $1",
        ["text", "text"],
        source,
        target,
    )
    db.run(
        'INSERT INTO {schema}.llm_bpe_merges (model, rank, "left", "right")'
        ' SELECT $2, rank, "left", "right" FROM {schema}.llm_bpe_merges WHERE model = $1',
        ["text", "text"],
        source,
        target,
    )


TABLES = ("llm_train_log", "llm_run", "llm_dataset", "llm_bpe_merges", "llm_bpe_vocab", "llm_param")


@entry
def drop_model(model: str | None) -> None:
    """Delete the rows of `model` from every table; 42704 when there is none."""
    if model is None:
        raise NullNotAllowed("model must not be null", hint="SELECT * FROM llm_models lists the models.")
    dropped = sum(db.run(f"DELETE FROM {{schema}}.{table} WHERE model = $1", ["text"], model) for table in TABLES)
    dropped += db.run("DELETE FROM {schema}.llm_model_config WHERE model = $1 AND NOT preset", ["text"], model)
    if not dropped:
        raise UndefinedObject(f'model "{model}" does not exist', hint="SELECT * FROM llm_models lists the models.")
