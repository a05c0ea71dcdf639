"""Domains that a caller meets: how large an argument may be before any work is done. docs/limits.md lists them.

Most of them bound the time of one call that cannot be interrupted, or the memory of what is asked for. What only memory bounds
is not here: it is asked for when it is taken.
"""

MOST_LAYERS = 10_000  # of a model: the names of the tensors alone would fill the memory with many more
MOST_BEAMS = 1024  # of a beam search: each has keys and values of its own
MOST_IDS = 1 << 20  # token ids in an array of SQL: PL/Python makes an object of each in one go, 0.5 us each
MOST_STOP_CHARACTERS = 65_536  # of all stop strings of a call: looking for them needs 300 bytes and a microsecond each
MOST_STEP_ROWS = 1 << 20  # of a training step: their order is drawn before anything else is done with them
