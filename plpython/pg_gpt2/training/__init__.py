"""Arithmetic of training: order of batches, a step in memory, AdamW and its schedule."""
