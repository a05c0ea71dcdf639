"""Domains that a caller meets: how large an argument may be before any work is done. docs/limits.md lists them.

Most of them bound the time of one call that cannot be interrupted, or the memory of what is asked for. What only memory bounds
is not here: it is asked for when it is taken.
"""

MOST_LAYERS = 10_000  # of a model: the names of the tensors alone would fill the memory with many more
MOST_BEAMS = 1024  # of a beam search: each has keys and values of its own
MOST_STEP_ROWS = 1 << 20  # of a training step: their order is drawn before anything else is done with them
MOST_DIMENSIONS = (
    16  # of a tensor, and of nested lists that say one: NumPy's own limit is 64, or 32 in older ones and in loops
)
