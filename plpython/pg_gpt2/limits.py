"""How large an argument or a result may be, checked before any work is done. docs/limits.md lists these limits.

Most of them bound the time of a step that cannot be interrupted, or the memory that an argument would cost. What is bounded by
memory alone is not here: that is asked for when it is needed.
"""

MOST_BYTES = (1 << 30) - (1 << 16)  # of a result: what a value of SQL takes, with what belongs to it
MOST_PATH = 4096  # bytes of a path on the server: what Linux takes, with the byte that ends it
MOST_LAYERS = 10_000  # of a model: the names of the tensors alone would fill the memory with many more
MOST_STOPS = 1024  # tokens that end texts: the CHECK of llm_model_config has the same
MOST_BEAMS = 1024  # of a beam search: each has keys and values of its own
MOST_SAMPLES = 1024  # texts for each prompt: a row of the result each
MOST_IDS = 1 << 20  # token ids, or other numbers, in an array of SQL: an object is made of each in one go
MOST_INPUTS = 4096  # of an op: each is read by a query of its own, and an array is made of all in one go
MOST_STOP_CHARACTERS = 65_536  # of all stop strings of a call: looking for them needs 300 bytes and a microsecond each
MOST_OPTION_CHARACTERS = 1 << 20  # of `options`: reading JSON cannot be interrupted, and takes a second for 100 MB
MOST_POSITIONS = 1 << 20  # of attention: a chunk of rows and all its keys are worked on without a look for an interrupt
MOST_ROW = 1 << 22  # values of a row that is normalised or that classes are chosen by: what one call of NumPy works on
MOST_CHOICES = 1 << 20  # logits that pg_llm_sample chooses from: it sorts them
MOST_NUMBERS = 1 << 22  # numbers that pg_llm_tensor takes: PostgreSQL sends an array in one go, some 0.1 s
MOST_VALUES = 1 << 20  # values that pg_llm_values shows: PL/Python makes an array of them in one go
MOST_WORD = 1 << 24  # bytes of a word of a text: it is merged as a whole, at 150 bytes of memory for each
MOST_TOKEN_BYTES = 1 << 20  # of a token of a vocabulary: every use of it is a copy
MOST_ADDED = 1 << 17  # characters of the tokens added to a vocabulary: all are looked for at every place of a text
MOST_ADDED_TOKEN = 256  # characters of one of them
MOST_TRACED = 2000  # characters of a trace of merges: each row has all pieces, which is quadratic
MOST_BATCH = 65_536  # rows of a step by hand: their ids become an array, and their batch is made, in one go
MOST_STEP_ROWS = 1 << 20  # of a training step: their order is drawn before anything else is done with them
MOST_WEIGHT = 10**9  # of a row of data, or a target of a loss: sums of them stay numbers
MOST_DIMENSIONS = 16  # of a tensor, and of lists that say one: NumPy ends at 64, or 32, and some ops need a few more
MOST_SCHEMA_LEVELS = 32  # of a JSON schema, one within the other: calls within calls read it, and what is made of it
MOST_SUBSCHEMAS = 10_000  # of a JSON schema, one beside or within the other: each costs memory, and time at every token
MOST_BOUND_DIGITS = 50  # of a bound of a number in a JSON schema: its grammar has as many levels
