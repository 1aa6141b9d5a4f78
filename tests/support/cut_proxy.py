"""A connection in the middle: passes bytes between a client and a server until told to cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


class CutProxy:
    """Listens on a Unix socket in front of another one.

    Once `cut_after` is set, the first message from a client that contains it is still delivered,
    and then the client is cut off without the answer.
    """

    def __init__(self, listen: Path, server: Path) -> None:
        self.cut_after: bytes | None = None
        self.refusing = False
        self.cuts = 0
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                for pump in (self._upward, self._downward):
                    thread = threading.Thread(target=pump, args=(client, server), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _upward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                cut = self.cut_after is not None and self.cut_after in data
                if cut:
                    self.cut_after = None
                    self.cuts += 1
                    # No answer reaches the client from here on.
                    client.shutdown(socket.SHUT_RDWR)
                server.sendall(data)
                if cut:
                    # The server finishes what it was sent, then sees the end.
                    break
            server.shutdown(socket.SHUT_WR)

    def _downward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)

    def close(self) -> None:
        """Stop listening, and wait for the connections, which must be closed by then."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@contextlib.contextmanager
def cut_proxy(directory: Path, server: Path) -> Iterator[CutProxy]:
    """A proxy named as PostgreSQL's socket is, in another directory."""
    proxy = CutProxy(directory / server.name, server)
    try:
        yield proxy
    finally:
        proxy.close()
