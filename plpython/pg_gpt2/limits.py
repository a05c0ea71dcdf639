"""Domains that a caller meets: how large an argument may be before any work is done. docs/limits.md lists them.

Most of them bound the time of one call that cannot be interrupted, or the memory of what is asked for. What only memory bounds
is not here: it is asked for when it is taken.
"""

MOST_LAYERS = 10_000  # of a model: the names of the tensors alone would fill the memory with many more
MOST_BEAMS = 1024  # of a beam search: each has keys and values of its own
MOST_IDS = 1 << 20  # token ids in an array of SQL: PL/Python makes an object of each in one go, 0.5 us each
MOST_WORD = 1 << 24  # bytes of a word of a text: it is merged as a whole, at 150 bytes of memory for each
MOST_TOKEN_BYTES = 1 << 20  # of a token of a vocabulary: every use of it is a copy
MOST_TRACED = 2000  # characters of a trace of merges: each row has all pieces, which is quadratic
MOST_STEP_ROWS = 1 << 20  # of a training step: their order is drawn before anything else is done with them
