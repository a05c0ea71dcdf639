"""What each row is held to, on gpt2-small's shape with two threads; ratios are ours / theirs in the row's unit.

Those of decoding suppose AVX-512, and the absolute ones a machine as fast as the one they were set on.
"""

from report import Limit

TORCH, CT2, CT2_INT8, PEFT = "transformers", "ctranslate2", "ctranslate2 int8", "peft"
READ, SGEMM = "memory read", "sgemm"
BASE, FULL_MODEL, OWN_SIZE = "its base", "a full one", "their own size"
ONE_SERVER = "one of them"
PURE_SQL = "the query of docs/sql"
PLAIN, UNDRAFTED = "plain GPT-2", "without a draft"

# Each differs from GPT-2 in one thing. One with an output layer of its own has more to learn, so that its step takes longer.
RELATIVES: dict[str, dict[str, object]] = {
    "exact gelu": {"activation_function": "gelu"},
    **{name: {"activation_function": name} for name in ("relu", "silu", "quick_gelu", "tanh")},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "its own output layer": {"tie_word_embeddings": False},
}
SLOWER = {name: 1.15 if name == "exact gelu" else 1.05 for name in RELATIVES}

TARGETS: dict[str, tuple[Limit, ...]] = {
    "decode": (Limit(READ, ">=", 0.80), Limit(TORCH, ">=", 2.4), Limit(CT2, ">=", 1.1)),
    "position": (Limit("at position 50", ">=", 0.88),),
    "verify 4": (Limit("one token", "<=", 1.1),),
    "verify 8": (Limit("one token", "<=", 1.4),),
    "lookup": (Limit("without lookup", ">=", 3.0),),
    "draft": (Limit(UNDRAFTED, ">=", 1.6),),
    "mask first": (Limit(None, "<=", 50.0),),
    "mask later": (Limit(None, "<=", 2.0),),
    "constrained": (Limit("free", ">=", 0.9),),
    "records": (Limit("free", ">=", 1.2),),
    "batch": (Limit("one stream", ">=", 7.0), Limit(CT2, ">=", 2.5), Limit(CT2_INT8, ">=", 1.0)),
    "json text": (Limit("free decoding", ">=", 0.9),),
    "json row": (Limit("free decoding", ">=", 1.0),),
    "prefill": (Limit(SGEMM, "<=", 1.45), Limit(TORCH, "<=", 0.8)),
    "choose": (Limit("without", ">=", 8.0), Limit(TORCH, ">=", 2.0)),
    "choose one by one": (Limit("without", ">=", 8.0),),
    "prefix": (Limit("without", ">=", 8.0), Limit(TORCH, ">=", 2.0)),
    "rows perplexity": (Limit("one by one", ">=", 1.3),),
    "rows embedding": (Limit("one by one", ">=", 1.2),),
    "long perplexity": (Limit(SGEMM, "<=", 1.6),),
    "long embedding": (Limit(SGEMM, "<=", 1.6),),
    "long perplexity small": (Limit(SGEMM, "<=", 1.6),),
    "rows generation": (Limit("one by one", ">=", 3.5),),
    "train 4x64": (Limit(SGEMM, "<=", 1.3), Limit(TORCH, "<=", 0.75)),
    "train 4x256": (Limit(SGEMM, "<=", 1.3), Limit(TORCH, "<=", 0.6)),
    "train 1x1024": (Limit(SGEMM, "<=", 1.3), Limit(TORCH, "<=", 0.6)),
    "peak 4x256": (Limit(TORCH, "<=", 0.7),),
    "adamw": (Limit(None, "<=", 0.15),),
    "nanogpt": (Limit("torch", "<=", 0.75),),
    "nanogpt loss": (Limit("torch", "<=", 1.01),),
    "adapter decode": (Limit(BASE, ">=", 0.9),),
    "adapter prefill": (Limit(BASE, ">=", 0.95),),
    "adapter train": (Limit(FULL_MODEL, "<=", 0.7),),
    "adapter peak": (Limit(FULL_MODEL, "<=", 0.5),),
    "adapter first": (Limit(None, "<=", 0.1),),
    "adapter memory one": (Limit(OWN_SIZE, "<=", 1.2),),
    "audit": (Limit("without audit", "<=", 1.05),),
    "overhead": (Limit("its arithmetic", "<=", 1.1),),
    "first warm": (Limit(None, "<=", 0.12),),
    "first text": (Limit(None, "<=", 0.12),),
    "first many": (Limit(None, "<=", 4.0),),
    "call": (Limit(None, "<=", 0.4),),
    "first cold": (Limit(None, "<=", 2.5),),
    "memory": (Limit(None, "<=", 60.0),),
    "encode english warm": (Limit(None, ">=", 8.0), Limit("tiktoken", ">=", 0.6)),
    "encode english cold": (Limit(None, ">=", 3.0), Limit("tiktoken", ">=", 0.6)),
    "encode mixed warm": (Limit(None, ">=", 6.0),),
    "sessions": (Limit("the best number", ">=", 0.85),),
    "serve token": (Limit(None, "<=", 3.0),),
    "serve streams": (Limit("one by one", ">=", 0.8),),
    "servers perplexity": (Limit(ONE_SERVER, ">=", 1.8),),
    "servers train gpt2-small": (Limit(ONE_SERVER, ">=", 1.75),),
    "servers train middle": (Limit(ONE_SERVER, ">=", 1.75),),
    "servers train adapter": (Limit(ONE_SERVER, ">=", 1.8),),
    "pure sql": (Limit(PURE_SQL, ">=", 500.0),),
    **{f"decode {name}": (Limit(PLAIN, ">=", round(1 / most, 2)),) for name, most in SLOWER.items()},
    **{f"step {name}": (Limit(PLAIN, "<=", most),) for name, most in SLOWER.items() if "output" not in name},
}
