"""What one chunk costs before it is on the socket."""

from __future__ import annotations

from benchmarks.figure import Figure, median_of, seconds
from benchmarks.scale import Scale
from darkbloom_provider.protocol import codec, openai
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import InferenceResponseChunk, Usage

CHUNKS = 2_000


def measure(scale: Scale) -> list[Figure]:
    """Microseconds to shape, seal and encode a chunk."""
    channel = Channel(KeyPair.generate(), KeyPair.generate().public_text)

    def chunks() -> None:
        for count in range(CHUNKS):
            text = openai.chunk_event(
                id="chatcmpl-1", created=1_760_000_000, model="model", delta={"content": " word"}
            )
            codec.encode(
                InferenceResponseChunk(
                    request_id="3f2b8c1e-6f1d-4e59-9a0c-2b7f6d1e9a10",
                    encrypted_data=channel.payload(text.encode()),
                    usage=Usage(prompt_tokens=17, completion_tokens=count),
                )
            )

    return [Figure("wire.chunk_us", median_of(lambda: seconds(chunks), scale) / CHUNKS * 1e6, "us")]
