"""Models as rows and files: weights and their cache, checkpoints, sharing."""
