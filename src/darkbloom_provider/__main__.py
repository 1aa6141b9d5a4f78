"""The way into the program: `darkbloom`, and `python -m darkbloom_provider`.

What an interrupt does is settled before anything else is imported. A command may be interrupted:
it tidies up. Before and after it there is nothing to tidy up, and Ctrl-C ends the process at once
instead of with the traceback of whatever was being imported or taken down.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


def main() -> None:
    """Run the command that was called and end the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # `serve` holds signals back while it starts itself again.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    from darkbloom_provider.cli.main import main as command  # noqa: PLC0415 - after the signals

    with _interruptible():
        command()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt`, unless it was ignored from the start, as by `&`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
