"""pg_gpt2: GPT-2, trained and run inside PostgreSQL, on NumPy.

Read `core` first: it is the paper. `fast` does the same faster. `generation`, `training`, `autograd`, `tokenizer` and `formats`
are built on them and run in any Python that has NumPy; only `server` talks to PostgreSQL, and nothing outside it imports it.
"""

__version__ = "1.0"
