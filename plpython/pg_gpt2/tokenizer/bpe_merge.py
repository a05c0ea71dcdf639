"""Merges byte pairs inside one word: again and again the pair of lowest rank, of equal pairs the leftmost.

Two ways to the same symbols: scanning, for words as they are, and a heap, for a megabyte without a space. Where each
merge makes a token of its own, as in GPT-2's vocabulary, this equals merging all occurrences of the best pair at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from .. import host
from .pairs import Ranks

MERGES_A_CHECK = 1 << 14


def merge_by_scan(symbols: list[int], ranks: Ranks, merged: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Merges `symbols` in place, giving the rank and the place of each merge; `merged[rank]` is the symbol it makes.

    Quadratic in the length, with the constant of `min` and `list.index`.
    """
    rank_of, never = ranks.__getitem__, ranks.never
    waiting = [rank_of(pair) for pair in pairwise(symbols)]
    while waiting and (rank := min(waiting)) < never:
        i = waiting.index(rank)
        symbols[i] = merged[rank]
        del symbols[i + 1], waiting[i]
        if i:
            waiting[i - 1] = rank_of((symbols[i - 1], symbols[i]))
        if i < len(waiting):
            waiting[i] = rank_of((symbols[i], symbols[i + 1]))
        yield rank, i


def merge_by_heap(symbols: list[int], ranks: Ranks, merged: Sequence[int]) -> list[int]:
    """The same symbols as `merge_by_scan` leaves, in O(n log n). `symbols` is used up.

    Places wait by rank: one heap of all pairs of a word of 16 MB would take seconds to order, in one call.
    """
    n, never = len(symbols), ranks.never
    left: list[int] = []  # neighbours
    right: list[int] = []  # n ends the word
    rank_at: list[int] = []
    waiting: defaultdict[int, list[int]] = defaultdict(list)  # rank -> heap of places
    progress = host.Progress(f"merging a word of {n:,} bytes", "bytes", n)
    for start in range(0, n, MERGES_A_CHECK):
        host.check_interrupts()
        ranked = [ranks[pair] for pair in pairwise(symbols[start : start + MERGES_A_CHECK + 1])]
        rank_at += ranked
        left += range(start - 1, min(start + MERGES_A_CHECK, n) - 1)
        right += range(start + 1, min(start + MERGES_A_CHECK, n) + 1)
        for place, rank in enumerate(ranked, start):
            if rank < never:
                waiting[rank].append(place)
    rank_at.append(never)
    order = sorted(waiting)  # a heap of ranks

    def join(place: int) -> None:
        """Looks at the pair that begins at `place`."""
        follower = right[place]
        rank = ranks[symbols[place], symbols[follower]] if follower < n else never
        rank_at[place] = rank
        if rank < never:
            if rank not in waiting:
                heappush(order, rank)
            heappush(waiting[rank], place)

    count = 0
    while order:
        rank = order[0]
        if not waiting[rank]:
            del waiting[heappop(order)]
            continue
        place = heappop(waiting[rank])
        count += 1
        if count % MERGES_A_CHECK == 0:
            host.check_interrupts()
            progress.at(count)
        if rank_at[place] != rank:  # another merge took one of the two
            continue
        gone = right[place]
        symbols[place] = merged[rank]
        rank_at[gone] = never
        right[place] = right[gone]
        if right[gone] < n:
            left[right[gone]] = place
        join(place)
        if place:
            join(left[place])
    place = 0
    result: list[int] = []
    while place < n:
        if len(result) % MERGES_A_CHECK == 0:
            host.check_interrupts()
        result.append(symbols[place])
        place = right[place]
    return result
