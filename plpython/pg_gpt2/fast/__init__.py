"""Speed: the ops blocked and threaded, weights in panels, passes that are prepared, attention over caches."""
