"""The codec under foreign bytes: what may come out of it, and what may never.

Run it under atheris for as long as you like (Linux on x86-64, with the `dev` extra):

    python tests/fuzz/codec.py [libFuzzer options] [corpus directories]
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # as a script, its own directory is where Python looks first
    sys.path[0] = str(Path(__file__).parent.parent)
    import atheris

    with atheris.instrument_imports(include=["darkbloom_provider.protocol", "json"]):
        from darkbloom_provider.protocol import codec
else:
    from darkbloom_provider.protocol import codec

from darkbloom_provider.link.events import Connected, FrameReceived, FrameUndecodable
from darkbloom_provider.link.session import Session
from darkbloom_provider.protocol.messages import Register
from fuzz.mutation import mutated
from support.recordings import SESSIONS, frames, recording


def seeds() -> list[bytes]:
    """Every golden message, and every different kind of frame of the recorded sessions."""
    golden = [line["wire"].encode() for line in recording("messages")]
    recorded = {line["wire"] for name in SESSIONS for line in frames(name) if "wire" in line}
    return golden + sorted(text.encode() for text in recorded)


def words() -> list[bytes]:
    """Pieces that frames are made of: names, values and the marks of JSON."""
    marks = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u", b"\\ud800", b"null", b"true", b"-0"]
    numbers = [b"1e999", b"NaN", b"9223372036854775808", b"1.0", b"\xff", b"\xef\xbb\xbf", b"\x00"]
    names = {
        piece
        for wire in seeds()
        for piece in wire.split(b'"')
        if piece.isascii() and piece.islower()
    }
    return marks + numbers + sorted(names)


def check(data: bytes) -> None:
    """Feed one frame to both directions and to a session.

    Raises:
        Exception: Anything but a `FrameError` came out, or a message changed on its way.
    """
    try:
        told = codec.decode_from_provider(data)
    except codec.FrameError:
        pass
    else:
        again = codec.decode_from_provider(codec.encode(told))
        assert again == told, "a provider's message changed on its way"
        if isinstance(told, Register) and told.attestation is not None:
            assert told.attestation.encode() in data, "signed bytes changed on their way"
    session = Session()
    session.receive(Connected(), 0.0)
    try:
        heard = codec.decode_from_coordinator(data)
    except codec.FrameError as error:
        session.receive(FrameUndecodable(error), 1.0)
    else:
        assert codec.decode_from_coordinator(codec.encode(heard)) == heard
        for now in (1.0, 2.0):
            session.receive(FrameReceived(heard), now)


def main() -> None:
    """Run libFuzzer over `check`, with the seeds beside the corpus that was named."""
    pool = seeds() + words()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        # libFuzzer does not see into the JSON parser: half of the time, change values in its place.
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, random.Random(seed), pool)[:most]

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seeded, dictionary = directory / "seeds", directory / "words"
        seeded.mkdir()
        for number, seed in enumerate(seeds()):
            (seeded / str(number)).write_bytes(seed)
        quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in words() if word]
        dictionary.write_text("".join(f'"{word}"\n' for word in quoted))
        arguments = [*sys.argv, f"-dict={dictionary}", str(seeded)]
        atheris.Setup(arguments, check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
