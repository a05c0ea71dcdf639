"""Stop strings, looked for in a text while it grows: one automaton of all of them (Aho and Corasick 1975).

A character costs the same however many and however long they are. A state is the longest end of the text that begins a stop
string; 0 is none.
"""

from collections.abc import Sequence

from .. import host
from ..errors import InvalidParameter
from ..limits import MOST_STOP_CHARACTERS


class Stops:
    """The automaton, shared by all texts of a call. Refuses (22023) an empty or null stop string, and too many characters."""

    def __init__(self, stops: Sequence[str] | None = None) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._lengths = [0]  # of a state's end of the text
        self._found = [0]  # length of the longest stop string that ends it, 0 for none
        self._shorter = [0]  # the state of the next shorter end
        for stop in _checked(stops or ()):
            self._add(stop)
        self._connect()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return len(self._next) > 1

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (following := self._next[state].get(character)) is None and state:
            state = self._shorter[state]
        return following or 0

    def begun(self, state: int) -> int:
        """Characters at the end of the text that may become a stop string."""
        return self._lengths[state]

    def found(self, state: int) -> int:
        """Length of the longest stop string at the end of the text; 0 for none."""
        return self._found[state]

    def _add(self, stop: str) -> None:
        host.check_interrupts()
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._lengths.append(self._lengths[state] + 1)
                self._found.append(0)
                self._shorter.append(0)
            state = following
        self._found[state] = len(stop)

    def _connect(self) -> None:
        """Fill in `_shorter`, short ends first."""
        states = list(self._next[0].values())
        for state in states:
            host.check_interrupts()
            for character, following in self._next[state].items():
                shorter = self.step(self._shorter[state], character)
                self._shorter[following] = shorter
                self._found[following] = self._found[following] or self._found[shorter]
                states.append(following)


def _checked(stops: Sequence[str]) -> Sequence[str]:
    if not all(stops):
        raise InvalidParameter(
            "a stop string must not be empty or null", hint="stop => ARRAY[E'\\n\\n'] ends at an empty line."
        )
    characters = sum(map(len, stops))
    if characters > MOST_STOP_CHARACTERS:
        raise InvalidParameter(
            f"stop strings of {characters} characters together are more than {MOST_STOP_CHARACTERS}",
            hint="Give fewer or shorter ones: the first line of a long text stops where the text does.",
        )
    return stops
