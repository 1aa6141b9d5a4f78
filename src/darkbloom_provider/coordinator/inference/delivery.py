"""The reply to one consumer: in its dialect, in the clear or sealed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from darkbloom_provider.coordinator.inference import dialects
from darkbloom_provider.coordinator.inference.consumer import Consumer
from darkbloom_provider.coordinator.inference.dialects import Dialect
from darkbloom_provider.coordinator.inference.sealing import Wrapping
from darkbloom_provider.coordinator.rest.replies import ApiError

_STREAM: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


class Delivery:
    """See the module. Everything raises `ConsumerLeftError` when nobody reads any more."""

    def __init__(self, consumer: Consumer, dialect: Dialect, wrapping: Wrapping) -> None:
        self.consumer = consumer
        self._dialect = dialect
        self._wrapping = wrapping

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Begin a stream of events."""
        await self.consumer.start(200, {**_STREAM, **self._wrapping.headers, **headers})

    async def send(self, events: Sequence[bytes]) -> None:
        """Send events of the stream."""
        if events:
            await self.consumer.write(self._wrapped(events))

    async def end(self, events: Sequence[bytes]) -> None:
        """Send the last events."""
        await self.consumer.finish(self._wrapped(events))

    async def whole(
        self, document: Mapping[str, Any], headers: Mapping[str, str], status: int = 200
    ) -> None:
        """Send one JSON object."""
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        data = self._wrapping.body(text.encode("utf-8", "replace"))
        content = {
            "Content-Type": self._wrapping.media_type,
            "Content-Length": str(len(data)),
        }
        await self.consumer.start(status, {**content, **self._wrapping.headers, **headers})
        await self.consumer.finish(data)

    async def fail(self, error: ApiError) -> None:
        """Say why there is no answer, or no more of it."""
        what = (error.status, error.type, error.message)
        if self.consumer.started:
            await self.end([dialects.error_event(self._dialect, *what)])
        else:
            document = dialects.error_document(self._dialect, *what)
            await self.whole(document, error.headers or {}, error.status)

    def _wrapped(self, events: Sequence[bytes]) -> bytes:
        return b"".join(map(self._wrapping.event, events))
