"""Who waits for a place in the batch, and who is next. Engine thread only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from darkbloom_provider.engine.entry import Entry
from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.ledger import ModelMemory
from darkbloom_provider.engine.sharing import Contents, Sharing, Start


class Line:
    """First come, first served, but for those whose beginning another one is computing.

    Args:
        memory: Lets requests in, or says that they must wait.
        sharing: Knows what need not be computed, and who waits for whom.
    """

    def __init__(self, memory: ModelMemory, sharing: Sharing) -> None:
        self._memory = memory
        self._sharing = sharing
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def prompt_tokens(self) -> int:
        """Of all that wait."""
        return sum(len(entry.prompt) for entry in self._entries)

    def add(self, entry: Entry) -> None:
        """Put it at the end."""
        self._entries.append(entry)

    def remove(self, key: int) -> bool:
        """Take a request out; False if it is not here."""
        for entry in self._entries:
            if entry.key == key:
                self._entries.remove(entry)
                return True
        return False

    def clear(self) -> list[Entry]:
        """Take all out."""
        entries = [*self._entries]
        self._entries.clear()
        return entries

    def startable(
        self, fits: Callable[[int, bool], bool], contents: Callable[[int], Contents | None]
    ) -> Iterator[tuple[Entry, Start | EngineError]]:
        """Take out those who can begin now, one by one, each with how or why not.

        Args:
            fits: Whether the batch has room for a prompt with so many tokens to compute, and with
                True: even if that means overtaking one that has none. Asked anew for every one,
                after what came before has joined; if not even the shortest has a chance, nobody is
                looked at.
            contents: Takes what the row of a running request holds, by its key.
        """
        passed_over = False

        def has_room(tokens: int) -> bool:
            nonlocal passed_over
            room = fits(tokens, passed_over)
            passed_over |= not room
            return room

        for entry in tuple(self._entries):
            if not fits(1, passed_over):
                return
            try:
                if not self._memory.enter(entry.key, entry.tokens):
                    return  # not to be overtaken, or a large request would wait for ever
            except EngineError as error:
                self._entries.remove(entry)
                yield entry, error
                continue
            behind = [other.candidate for other in self._entries if other.key > entry.key]
            start = self._sharing.begin(entry.candidate, behind, contents, has_room)
            if start is None:
                self._memory.leave(entry.key)
                continue
            self._entries.remove(entry)
            yield entry, start
