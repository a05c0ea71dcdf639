"""What is measured: the model's shape and how much work its passes are, the text, and the settings of training."""

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).resolve().parents[2]
LR, WEIGHT_DECAY, CLIP = 3e-4, 0.1, 1.0
TEXT_BYTES = 1_000_000


@dataclass(frozen=True)
class Shape:
    """A GPT-2 shape. The counts leave out biases, norms and attention's own products, which are below 1-5 %."""

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

    def decode_bytes(self) -> float:
        """Bytes of weights that are read for one token."""
        return 4.0 * (self.block_weights + self.head_weights)

    def prefill_flops(self, length: int) -> float:
        """Operations of a prompt's pass that ends with the logits of its last token."""
        return 2.0 * (self.block_weights * length + self.head_weights)

    def step_flops(self, n_tokens: int) -> float:
        """Operations of forward and backward: 6 a weight and token."""
        return 6.0 * (self.block_weights + self.head_weights) * n_tokens


def english() -> str:
    """1 MB of English: documentation of PostgreSQL and of Python, as far as they reach, repeated from there."""
    text = (ROOT / "loaders" / "data" / "postgresql_docs.txt").read_text(encoding="utf-8") + "\n".join(topics.values())
    text = text.encode("ascii", "ignore").decode()
    return (text * (TEXT_BYTES // len(text) + 1))[:TEXT_BYTES]
