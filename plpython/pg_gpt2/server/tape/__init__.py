"""Tapes as rows of `llm_tape` and its tables."""
