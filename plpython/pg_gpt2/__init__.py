"""pg_gpt2: GPT-2, trained and run inside PostgreSQL, on NumPy.

Dependency runs one way: errors, tensor <- ops <- tape <- gpt2; tokenizer, storage <- autograd, training, inference <- api.
Only `db` talks to the server; everything else runs in any Python that has NumPy.
"""

__version__ = "1.0"
