"""Which tokens keep a text within a grammar, and how it still gets to an end when few tokens are left.

Where the grammar leaves one continuation only, its bytes as the tokenizer cuts them are the tokens to take, without a look at the
model; so that a text is cut as the model has seen it in training.
"""

import codecs
from collections.abc import Callable
from copy import copy

import numpy as np

from ... import host
from ...errors import InvalidParameter
from .automaton import Automaton
from .grammar import EMPTY, Node, without_far_bounds
from .vocabulary import ROOT, Vocabulary

MOST_FORCED = 256  # bytes that are looked ahead for text that must come
MOST_KNOWN = 1 << 14  # states of which is known what may come; then they are forgotten
MOST_SETS = 1 << 24  # bytes of different sets of tokens that may come
MOST_COUNTED = 1000  # tokens to the end
NEAR = 3  # tokens to the end, for which a search may find the fewest
MOST_SEARCHED = 4_000_000  # nodes of the vocabulary's tree in such a search, some 0.1 s
A_STATE = 4_000  # nodes that a state counts for

Encode = Callable[[str], list[int]]


class Constraint:
    """A grammar and a vocabulary; a state is what remains of the grammar. `eos` None = there is no end-of-text token.

    What is found for a state is kept; it depends on the state only, not on what was asked before.
    """

    def __init__(self, node: Node, vocabulary: Vocabulary, encode: Encode, eos: int | None) -> None:
        self.start = node
        self.eos = eos
        self._automaton = Automaton(node)
        self._vocabulary = vocabulary
        self._encode = encode
        self._far = max(MOST_FORCED, vocabulary.longest)  # bytes, beyond which a token does not depend on anything
        self._masks: dict[Node, tuple[np.ndarray, int]] = {}
        self._sets: dict[bytes, np.ndarray] = {}  # of tokens, by their bytes: many states allow the same
        self._sets_size = 0
        self._forced: dict[Node, int | None] = {}
        self._onward: dict[Node, Node] = {}
        self._near: dict[Node, int] = {}
        self._last: tuple[Node, tuple[np.ndarray, np.ndarray, list[Node]]] | None = None

    def begin(self, max_tokens: int) -> "Walk":
        """A text of at most `max_tokens`; 22023 where so few cannot complete one."""
        if self.fits(self.start, max_tokens):
            return Walk(self, max_tokens)
        needed = self.tokens_to_end(self.start)
        if needed > max_tokens:
            raise InvalidParameter(
                f"max_tokens is {max_tokens}, and a complete text within the constraint needs {needed}",
                hint=f"Raise max_tokens to at least {needed}; a constrained text is never cut off.",
            )
        return Walk(self, needed, cut=True)  # a way so short is searched only where few tokens are left

    def after(self, state: Node, token: int) -> Node:
        """The state after a token; NOTHING after one that is not allowed."""
        self._automaton.renew()
        return self._automaton.after(state, self._vocabulary.tokens.get(token, b"\0"))

    def forced(self, state: Node) -> int | None:
        """The token that must come, if there is one: where one text only can follow, the first of its tokens.

        What follows behind that text may lengthen its last tokens; one that can be longer is not forced.
        """
        state = without_far_bounds(state, self._far)
        if state not in self._forced:
            _forget_many(self._forced)
            self._forced[state] = self._find_forced(state)
        return self._forced[state]

    def _find_forced(self, state: Node) -> int | None:
        data = self._only(state)
        text = _characters(data)
        known = self._vocabulary.tokens
        ids = self._encode(text) if text else []
        if not ids or not all(token in known for token in ids):
            return None
        place = length = len(text.encode())
        for token in reversed(ids):
            place -= len(known[token])
            tokens, _ = self._walk(self._automaton.after(state, data[:place]))
            if max(len(known[following]) for following in tokens.tolist()) <= length - place:
                return ids[0]
        return None

    def _only(self, state: Node) -> bytes:
        """The bytes that must follow, MOST_FORCED at most."""
        data = bytearray()
        self._automaton.renew()
        while len(data) < MOST_FORCED and not state.nullable:
            number = self._automaton.number(state)
            following = np.flatnonzero(self._automaton.row(number))
            if len(following) != 1:
                break
            data.append(following[0])
            state = self._automaton.after(state, bytes(data[-1:]))
        return bytes(data)

    def within(self, state: Node, left: int) -> np.ndarray:
        """Ids that may come when `left` tokens are left, this one included: the one that is forced, or those after which the text
        can still be completed; and the end-of-text token where the text may end."""
        forced = self.forced(state)
        if forced is not None and self.fits(self.after(state, forced), left - 1):
            return np.array([forced], np.int32)
        ids, farthest = self._mask(state)
        if farthest > left - 1 and len(ids):
            ids, kinds, after = self._sorts(state)
            ids = ids[np.array([self.fits(one, left - 1) for one in after])[kinds]]
        return np.append(ids, np.int32(self.eos)) if self.eos is not None and state.nullable else ids

    def _sorts(self, state: Node) -> tuple[np.ndarray, np.ndarray, list[Node]]:
        """Ids that may come, which of the states that follow each leads to, and these: few, for most tokens lead to the same.

        What was found last is kept, since a text that must come to its end may stay in one state for some tokens.
        """
        if self._last is None or self._last[0] is not state:
            ids, after = self._walk(state)
            numbers = np.flatnonzero(np.bincount(after))
            kinds = np.zeros(len(self._automaton.nodes), np.int32)
            kinds[numbers] = np.arange(len(numbers))
            self._last = state, (ids, kinds[after], [self._automaton.nodes[number] for number in numbers.tolist()])
        return self._last[1]

    def _mask(self, state: Node) -> tuple[np.ndarray, int]:
        """Ids that may come, ascending, and the most bytes that are then missing to the nearest end."""
        state = without_far_bounds(state, self._far)
        found = self._masks.get(state)
        if found is None:
            ids, after = self._walk(state)
            farthest = int(self._automaton.shortest[after].max(initial=0))
            if self._sets_size > MOST_SETS or len(self._masks) > MOST_KNOWN:
                self._masks, self._sets, self._sets_size = {}, {}, 0
            key = ids.tobytes()
            if key not in self._sets:
                self._sets[key] = np.frombuffer(key, ids.dtype)
                self._sets_size += len(key)
            found = self._masks[state] = self._sets[key], farthest
        return found

    def _walk(self, state: Node) -> tuple[np.ndarray, np.ndarray]:
        """Ids that may come, ascending, and the number of the state after each."""
        self._automaton.renew()
        return self._vocabulary.walk(self._automaton, self._automaton.number(state))[:2]

    def fits(self, state: Node, left: int) -> bool:
        """Whether `left` tokens are sure to complete the text. If they are, so are one less after some token.

        They are where no more bytes are missing, since there is a token for each; where the nearest way, taken in the
        longest tokens, has no more of them; or where a search, which is made when few are left, finds so few.
        """
        if state.shortest <= left or state.shortest > left * self._vocabulary.longest:
            return state.shortest <= left
        return self._by_longest(state, left) <= left or (left <= NEAR and self._search(state) <= left)

    def tokens_to_end(self, state: Node) -> int:
        """The least number that fits; where that is above MOST_COUNTED, one that does."""
        counted = self._by_longest(state, MOST_COUNTED)
        return min(self._search(state), counted if counted <= MOST_COUNTED else state.shortest)

    def _by_longest(self, state: Node, most: int) -> int:
        """How many tokens the nearest way to the end has, if each is the longest there is; some number above `most` for more."""
        tokens = 0
        while state.shortest and tokens <= most:
            onward = self._onward.get(state)
            if onward is None:
                _forget_many(self._onward)
                onward = self._onward[state] = self._after_longest(state)
            state = onward
            tokens += 1
        return tokens

    def _after_longest(self, state: Node) -> Node:
        """The state after the longest token on the nearest way to the end, of equally near ones by the lowest bytes."""
        self._automaton.renew()
        host.check_interrupts()
        number = found = self._automaton.number(state)
        tree, place = self._vocabulary, ROOT
        while self._automaton.shortest[number]:
            byte = self._automaton.nearest(number)
            if (below := tree.child(place, byte)) is None:
                break
            number, place = self._automaton.step(number, byte), below
            found = number if tree.is_token(place) else found
        return self._automaton.nodes[found]

    def _search(self, state: Node) -> int:
        """The fewest tokens that complete the text; where more than NEAR are needed, or much is to be searched, its bytes."""
        found = self._near.get(state)
        if found is None:
            _forget_many(self._near)
            found = self._near[state] = self._breadth_first(state)
        return found

    def _breadth_first(self, state: Node) -> int:
        automaton, work, at = self._automaton, 0, {state}
        for tokens in range(NEAR + 1):
            if not all(node.shortest for node in at):
                return tokens
            following: set[Node] = set()
            for node in at if tokens < NEAR else ():
                automaton.renew()
                _, after, looked_at = self._vocabulary.walk(automaton, automaton.number(node))
                work += looked_at + A_STATE
                if work > MOST_SEARCHED:
                    return state.shortest
                following.update(automaton.nodes[number] for number in np.unique(after).tolist())
            at = following
        return state.shortest


def _forget_many(known: dict) -> None:
    if len(known) >= MOST_KNOWN:
        known.clear()


def _characters(data: bytes) -> str:
    """The characters of bytes that may be cut at the end; none where they begin within one."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return ""


class Walk:
    """A text on its way through a constraint, with `left` tokens to go; `cut`: fewer than were asked for."""

    def __init__(self, constraint: Constraint, left: int, cut: bool = False) -> None:
        self.constraint = constraint
        self.state = constraint.start
        self.left = left
        self._cut = cut
        self._allowed: np.ndarray | None = None

    def take(self, token: int) -> None:
        """The text goes on with a token."""
        self.left -= 1
        self._allowed = None
        if token != self.constraint.eos:
            self.state = self.constraint.after(self.state, token)

    @property
    def over(self) -> bool:
        """Whether nothing can follow; where no end-of-text token says so, also whether the tokens left cannot end elsewhere."""
        if self.constraint.eos is None and self.left and self.state.nullable:
            return not len(self.allowed)
        return self.state is EMPTY or (self._cut and not self.left)

    @property
    def allowed(self) -> np.ndarray:
        """Ids that may come next."""
        if self._allowed is None:
            self._allowed = self.constraint.within(self.state, self.left)
        return self._allowed

    @property
    def only(self) -> int | None:
        """The token that comes next whatever the model says, if there is one."""
        return int(self.allowed[0]) if len(self.allowed) == 1 else None

    def ahead(self) -> "tuple[list[int], bool]":
        """The tokens that come next whatever the model says, one after the other, and whether the text is complete then."""
        there = copy(self)
        tokens: list[int] = []
        while there.left and not there.over and (token := there.only) is not None:
            tokens.append(token)
            there.take(token)
            if token == self.constraint.eos:
                return tokens, True
        return tokens, there.over or not there.left
