"""The coordinator's end of a link, in a process of its own so that it costs this one nothing.

`python hub.py STREAMS` prints its port, then keeps every link that dials in busy: STREAMS requests
at once, and as many again when all are complete. What is sent to it is counted off and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME, decode_from_provider, encode
from darkbloom_provider.protocol.messages import AttestationChallenge, InferenceRequest, Register

MODEL = "model"


@contextlib.contextmanager
def running(streams: int) -> Iterator[str]:
    """A hub that asks for so many streams at once; its websocket address."""
    with subprocess.Popen(
        [sys.executable, __file__, str(streams)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"ws://127.0.0.1:{int(process.stdout.readline())}/ws/provider"
        finally:
            process.kill()


async def _keep_busy(connection: ServerConnection, streams: int) -> None:
    register = decode_from_provider(await connection.recv())
    assert isinstance(register, Register)
    challenge = AttestationChallenge(nonce="nonce", timestamp="2026-01-02T03:04:05Z")
    await connection.send(encode(challenge))
    channel = Channel(KeyPair.generate(), register.public_key)
    message = {"role": "user", "content": "hello"}
    body = json.dumps({"model": MODEL, "messages": [message], "stream": True}).encode()
    for batch in itertools.count():
        for stream in range(streams):
            request = InferenceRequest(
                request_id=f"{batch}-{stream}", encrypted_body=channel.payload(body)
            )
            await connection.send(encode(request))
        await _completed(connection, streams)


async def _completed(connection: ServerConnection, streams: int) -> None:
    while streams:
        frame = await connection.recv(decode=False)
        if b'"inference_error"' in frame:
            raise RuntimeError(frame.decode())
        streams -= b'"inference_complete"' in frame


async def _serve(streams: int) -> None:
    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await _keep_busy(connection, streams)

    async with serve(handle, "127.0.0.1", 0, max_size=MAX_PROVIDER_FRAME, compression=None) as hub:
        (listener,) = hub.sockets
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - read by `running`
        await hub.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
