"""The demo's consumer: chat requests over HTTP, as any OpenAI client sends them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx

from darkbloom_provider.demo.network import DemoError
from darkbloom_provider.logs import Secret

TIMEOUT_S = 120.0


class Consumer:
    """Asks one model questions. Use as `async with Consumer(...)`."""

    def __init__(self, base_url: str, api_key: Secret, model: str) -> None:
        self._model = model
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key.reveal()}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(self, question: str, *, max_tokens: int) -> str:
        """The whole answer at once.

        Raises:
            DemoError: The request failed.
        """
        reply = await self._http.post(
            "/v1/chat/completions", json=self._body(question, max_tokens, stream=False)
        )
        if reply.status_code != HTTPStatus.OK:
            raise DemoError("A request failed", _problem(reply))
        return str(reply.json()["choices"][0]["message"]["content"])

    async def stream(self, question: str, *, max_tokens: int) -> AsyncGenerator[str]:
        """The answer piece by piece. Leaving the iteration early cancels the request.

        Raises:
            DemoError: The request failed.
        """
        body = self._body(question, max_tokens, stream=True)
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != HTTPStatus.OK:
                await reply.aread()
                raise DemoError("A request failed", _problem(reply))
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    yield _text(json.loads(line.removeprefix("data: ")))

    def _body(self, question: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": stream,
        }


def _text(event: dict[str, Any]) -> str:
    if "error" in event:
        raise DemoError("A stream failed", str(event["error"].get("message")))
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _problem(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {reply.status_code}"
