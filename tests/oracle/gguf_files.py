"""GGUF files of a GPT-2 as llama.cpp's convert_hf_to_gguf.py makes them, written by the gguf package.

Kinds that the package expands but cannot quantise are filled with blocks of random bits, under scales that keep values small:
any bits are a block.
"""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

NAMES = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
SCALES = {  # where the float16 scales of a block are, in bytes
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,),
    Kind.IQ2_XXS: (0,), Kind.IQ3_S: (0,), Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip


def theirs(name):
    """transformer.h.0.attn.c_attn.weight -> blk.0.attn_qkv.weight"""
    module, _, kind = name.rpartition(".")
    if module.startswith("transformer.h."):
        block, inner = module.removeprefix("transformer.h.").split(".", 1)
        return f"blk.{block}.{NAMES[inner]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def packed(values, kind, rng):
    """The bytes of a matrix in blocks of a kind."""
    if kind not in SCALES:
        return gguf.quantize(values, kind)
    rows, columns = gguf.quant_shape_to_byte_shape(values.shape, kind)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (rows * columns // size, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = rng.uniform(1e-5, 1e-4, len(blocks)).astype("<f2")
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, columns)


def write(path, model, kind, *, vocabulary=None, head=False, **metadata):
    """Write `model`, a GPT2LMHeadModel, with its matrices as `kind`; with `head` the tied output projection a second time."""
    config, rng = model.config, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "gpt2"))
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(metadata.pop("epsilon", config.layer_norm_epsilon))
    if vocabulary is not None:
        tokens, merges = vocabulary
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(metadata.pop("pre", "gpt-2"))
        writer.add_token_list([*tokens, "[PAD300]"])
        plain = [4 if token.startswith("<|") else 1 for token in tokens[:-1]]  # user-defined, normal
        writer.add_token_types([*plain, metadata.pop("kind_of_end", 3), 5])  # control, unused
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_eos_token_id(len(tokens) - 1)
    for name, value in metadata.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = values.float().numpy()
        data = np.ascontiguousarray(data.T) if data.ndim == 2 and ".h." in name else data
        if data.ndim == 1 or "wpe" in name:
            writer.add_tensor(theirs(name), data)
        else:
            block = packed(data, kind, rng)
            writer.add_tensor(theirs(name), block, raw_dtype=kind)
            if head and "wte" in name:
                writer.add_tensor("output.weight", block, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
