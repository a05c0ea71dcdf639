"""llm_embed, llm_block_forward, llm_forward_gpt2, llm_logits: the model in pieces, each recorded while recording is on."""

from math import prod
from typing import Any

import numpy as np

from ... import host
from ...bytea_ops import attention_bytes
from ...core import gpt2
from ...core.config import block_shapes
from ...core.gpt2 import Dropout, Pass
from ...core.tape import Eager
from ...errors import InvalidParameter, OutOfMemory, require, require_positive
from ...fast import layout
from ...fast.attention import mask_shape
from ...generation.decode import check_ids
from ...limits import MOST_BYTES
from ...op_checks import check_length, check_p
from ...tensor import from_bytes, to_bytes
from .. import resources
from ..arrays import received
from ..entry import entry
from ..prompts import draw_seed
from ..storage import store, weights
from ..tape import recording
from ..tape.recording import Recorder

BLOCK_TENSORS = {  # parameter of llm_block_forward -> name of the tensor in a block
    "ln1_g": "ln_1.weight",
    "ln1_b": "ln_1.bias",
    "w_qkv": "attn.c_attn.weight",
    "b_qkv": "attn.c_attn.bias",
    "w_o": "attn.c_proj.weight",
    "b_o": "attn.c_proj.bias",
    "ln2_g": "ln_2.weight",
    "ln2_b": "ln_2.bias",
    "w_fc": "mlp.c_fc.weight",
    "b_fc": "mlp.c_fc.bias",
    "w_proj": "mlp.c_proj.weight",
    "b_proj": "mlp.c_proj.bias",
}


@entry
@received(tokens="integer")
def embed(tokens: list[int] | None, model: str | None, d: int | None) -> bytes | None:
    """wte[token] + wpe[position]."""
    if tokens is None:
        return None
    loaded = weights.load(model)
    store.check_overrides(loaded.config, None, None, d, None)
    gpt2.check_window(len(tokens), loaded.config)
    check_ids(tokens, loaded.config, loaded.name)
    ids = np.asarray(tokens, np.int64)
    if not recording.enabled():
        return to_bytes(gpt2.embed(Eager(), loaded.decoder_weights, ids))
    return to_bytes(recording.on_tape(loaded, lambda run, params: gpt2.embed(run, params, ids)))


@entry
def block_forward(**given: Any) -> bytes:
    """One pre-LN block. `given` has the parameters of llm_block_forward by their names in SQL."""
    data, n_head, t, d = (given[name] for name in ("input", "n_head", "t", "d"))
    eps, dropout_p, training = (given[name] for name in ("eps", "dropout_p", "training"))
    tensors = {name: given[parameter] for parameter, name in BLOCK_TENSORS.items()}
    require(input=data, **tensors, eps=eps, dropout_p=dropout_p, training=training)
    require_positive(n_head=n_head, t=t, d=d)
    if d % n_head:
        raise InvalidParameter(f"d {d} is not divisible by n_head {n_head}", hint="Each head is d / n_head wide.")
    check_p(dropout_p)
    check_length(t)
    resources.apply_settings()
    chunk = resources.attention_chunk()
    x = from_bytes(data, (t, d), name="input")
    arrays = {name: from_bytes(tensors[name], shape, name=name) for name, shape in block_shapes(d).items()}
    drop = _drop(dropout_p, training)
    masks = prod(mask_shape(1, n_head, t)) if drop else 0
    host.require_room(attention_bytes(t, d, n_head, chunk) + masks + 4 * (24 * t * d + 12 * d * d), "llm_block_forward")
    options: dict[str, Any] = {"n_head": n_head, "eps": eps, "how": Pass(chunk=chunk, drop=drop)}
    if not recording.enabled():
        return to_bytes(gpt2.block(Eager(), arrays, x, **options))
    recorder = Recorder()
    params = recording.find_block(recorder, arrays)
    result = gpt2.block(recorder, params, recording.find(recorder, x), **options)
    recorder.flush()
    return to_bytes(result.data)


@entry
def forward_gpt2(data: bytes, model: str | None, n_layer: int | None, n_head: int | None, **given: Any) -> bytes:
    """All blocks and ln_f. `given` has the other parameters of llm_forward_gpt2 by their names in SQL."""
    t, d, dropout_p, training = (given[name] for name in ("t", "d", "dropout_p", "training"))
    require(input=data, dropout_p=dropout_p, training=training)
    check_p(dropout_p)
    loaded = weights.load(model)
    config = loaded.config
    store.check_overrides(config, n_layer, n_head, d, None)
    if t is None:
        t = len(data) // (4 * config.d_model)
    gpt2.check_window(t, config)
    x = from_bytes(data, (t, config.d_model), name="input")
    final = {
        name: from_bytes(given[parameter], (config.d_model,), name=name)
        for parameter, name in (("ln_f_weight", "ln_f.weight"), ("ln_f_bias", "ln_f.bias"))
        if given[parameter] is not None
    }
    how = Pass(chunk=resources.attention_chunk(), drop=_drop(dropout_p, training))
    if not recording.enabled():
        return to_bytes(
            gpt2.blocks(Eager(), layout.CheckpointTensors({**loaded.decoder_weights, **final}), x, config, how)
        )
    recorder = Recorder()
    params = recorder.params(loaded)
    for name, array in final.items():
        if not np.array_equal(params[name].data, array):
            params[name] = recording.find(recorder, array)
    result = gpt2.blocks(recorder, params, recording.find(recorder, x), config, how)
    recorder.flush()
    return to_bytes(result.data)


@entry
@received(token_ids="integer")
def logits(
    token_ids: list[int] | None,
    model_name: str | None,
    n_layer: int | None,
    n_head: int | None,
    d_model: int | None,
    vocab_size: int | None,
) -> bytes | None:
    """Logits [T, vocab] of all positions, as bytes."""
    if token_ids is None:
        return None
    if not token_ids:
        raise InvalidParameter("token_ids must not be empty", hint="llm_encode(text, model) gives ids.")
    model = weights.load(model_name)
    store.check_overrides(model.config, n_layer, n_head, d_model, vocab_size)
    if len(token_ids) > model.config.n_positions:
        raise InvalidParameter(
            f'{len(token_ids)} tokens are more than the {model.config.n_positions} positions of model "{model.name}"',
            hint="Give fewer tokens; llm_generate slides its window instead.",
        )
    check_ids(token_ids, model.config, model.name)
    if 4 * len(token_ids) * model.config.vocab > MOST_BYTES:
        raise OutOfMemory(
            f"logits of {len(token_ids)} x {model.config.vocab} do not fit a value of 1 GB", hint="Give fewer tokens."
        )
    host.require_room(3 * 4 * len(token_ids) * model.config.vocab, f"logits of {len(token_ids)} tokens")
    ids = np.asarray([token_ids], np.int64)
    return to_bytes(recording.on_tape(model, lambda run, params: gpt2.logits(run, params, ids, model.config)))


def _drop(p: float, training: bool) -> Dropout | None:
    return Dropout(p, draw_seed()) if training and p else None
