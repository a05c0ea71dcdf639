"""A training run as one HTML file: curves, samples, configuration, environment, checkpoints.

It loads nothing from elsewhere, and can be read without its script, which shows the values under the pointer.
"""
