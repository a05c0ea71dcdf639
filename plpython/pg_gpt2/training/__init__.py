"""Learning: a step in memory, runs and what is recorded of them, and runs done again."""
