"""What is measured: shapes of models with the work that their passes are, and the settings of training."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LR, WEIGHT_DECAY, CLIP = 3e-4, 0.1, 1.0
RANK, ALPHA, TARGET = 8, 16, "attn.c_attn"  # of adapters


@dataclass(frozen=True)
class Shape:
    """A GPT-2 shape; by default gpt2-small's. The counts leave out biases, norms and attention's products: 1 to 10 %."""

    n_layer: int = 12
    n_head: int = 12
    d_model: int = 768
    n_positions: int = 1024
    vocab: int = 50257

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        return 12 * self.n_layer * self.d_model**2

    @property
    def head_weights(self) -> int:
        """Weights of the output projection, which are those of the token embedding."""
        return self.vocab * self.d_model

    @property
    def n_params(self) -> int:
        """All scalars."""
        d = self.d_model
        return self.block_weights + self.n_layer * 13 * d + 2 * d + (self.vocab + self.n_positions) * d

    def decode_bytes(self) -> float:
        """Bytes of weights that are read for one token."""
        return 4.0 * (self.block_weights + self.head_weights)

    def decode_flops(self) -> float:
        """Operations of one token."""
        return 2.0 * (self.block_weights + self.head_weights)

    def prefill_flops(self, length: int) -> float:
        """Operations of a prompt's pass that ends with the logits of its last token."""
        return 2.0 * (self.block_weights * length + self.head_weights)

    def window_flops(self, length: int, scored: int) -> float:
        """Operations of a pass over a window, with logits of `scored` rows, and attention's products, of half the pairs."""
        attention = 2.0 * self.n_layer * self.d_model * length * (length + 1)
        return 2.0 * (self.block_weights * length + self.head_weights * scored) + attention

    def step_flops(self, n_tokens: int) -> float:
        """Operations of forward and backward: 6 a weight and token."""
        return 6.0 * (self.block_weights + self.head_weights) * n_tokens

    def adamw_bytes(self) -> float:
        """Bytes that AdamW must move: w, g, m, v read, w, m, v written; and g read before, for the norm."""
        return 4.0 * 8 * self.n_params

    def state_bytes(self) -> float:
        """Bytes of weights, gradients and the two moments."""
        return 16.0 * self.n_params

    def adapter_bytes(self, rank: int) -> float:
        """Bytes of the two matrices beside c_attn of each block."""
        return 4.0 * self.n_layer * rank * (self.d_model + 3 * self.d_model)


# nanoGPT's README, "I only have a macbook": its settings for a CPU.
NANOGPT_BATCH, NANOGPT_LENGTH, NANOGPT_STEPS = 12, 64, 2000
NANOGPT_LR, NANOGPT_MIN_LR, NANOGPT_WARMUP, NANOGPT_BETA2 = 1e-3, 1e-4, 100, 0.99


def nanogpt(vocab: int) -> Shape:
    """The recipe's model: 0.8 million weights."""
    return Shape(n_layer=4, n_head=4, d_model=128, n_positions=NANOGPT_LENGTH, vocab=vocab)


MIDDLE = Shape(n_layer=6, n_head=6, d_model=384, n_positions=256, vocab=8192)
MEDIUM, MEDIUM_NAME = Shape(24, 16, 1024), "24 layers, 1024 wide (gpt2-medium)"
XL = Shape(48, 25, 1600)
SCALING_LENGTH = 256  # of prompts and training rows, where that is not what changes
