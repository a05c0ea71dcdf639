"""What arrays hold, as tracemalloc counts it. Of Python's objects a table of all strings may grow in between, by megabytes."""

import tracemalloc

import numpy as np


def bytes_of_arrays() -> int:
    """Bytes of NumPy's arrays that were made since tracemalloc began and are there still."""
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)
