"""Client-side programs that bring models, vocabularies and texts into pg_gpt2 and models out again.

Run them as `python -m loaders.load_model --help`, or by path. Each works over one connection and in one transaction, so
that an interrupted run leaves nothing behind.
"""
