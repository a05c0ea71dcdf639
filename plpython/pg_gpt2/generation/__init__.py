"""Using a model: decoding, sampling, batches, beams, scores, and a look at every value on the way."""
