"""A training run as one HTML file: curves, samples, configuration, environment, checkpoints.

It needs nothing from elsewhere and no script to be read; with script, curves tell their values under the pointer.
"""
