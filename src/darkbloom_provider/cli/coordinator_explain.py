"""`darkbloom coordinator explain MODEL`: who would get a request now, and why not the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import click
import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.cli.coordinator_state import data_option
from darkbloom_provider.coordinator import beside
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.errors import DarkbloomError, ModelError, UnreachableError
from darkbloom_provider.logs import Secret

TIMEOUT_S: Final = 5.0
_PATH: Final = "/v1/admin/routing"
_ID_CHARACTERS: Final = 8
_TERMS: Final = {
    "slot": "loading the model",
    "queue": "requests ahead",
    "load": "other work",
    "backlog": "answers ahead",
    "prompt": "reading the prompt",
    "answer": "writing the answer",
    "memory_pressure": "memory pressure",
    "cpu": "processor use",
    "heat": "heat",
    "memory_use": "memory in use",
}
"""The terms of the cost as a person reads them; one that is not here is shown by its own name."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Reason(_Reply):
    text: str
    next_step: str


class _Provider(_Reply):
    provider_id: str
    chip_name: str
    hardware_model: str
    chosen: bool
    eligible: bool
    reasons: tuple[_Reason, ...]
    cost_ms: float
    cost_terms_ms: dict[str, float]
    queue: int
    in_flight: int
    max_in_flight: int

    @property
    def name(self) -> str:
        """What to call it, told apart from others of its kind."""
        kind = self.chip_name or self.hardware_model or "provider"
        return f"{_one_line(kind)} {self.provider_id[:_ID_CHARACTERS]}"


class _Routing(_Reply):
    model: str
    prompt_tokens: int
    max_tokens: int
    waiting: int
    waiting_limit: int
    summary: str
    next_step: str | None = None
    providers: tuple[_Provider, ...]


@click.command("explain")
@click.argument("model")
@click.option(
    "--prompt-tokens", type=click.IntRange(0, 10**7), metavar="N", help="Length of the prompt."
)
@click.option(
    "--max-tokens", type=click.IntRange(0, 10**7), metavar="N", help="Longest answer; 8192 if open."
)
@data_option
@json_option
@pass_invocation
def explain(
    invocation: Invocation,
    *,
    model: str,
    prompt_tokens: int | None,
    max_tokens: int | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say who would get a request for MODEL now, and why the others would not.

    Asks the coordinator that runs on this machine. Costs are in seconds, the least is best.
    """
    query = {"model": model, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens}
    document = _ask(invocation, data, {k: v for k, v in query.items() if v is not None})
    if as_json:
        invocation.out.print(json.dumps(document, indent=2, allow_nan=False))
        return
    try:
        routing = _Routing.model_validate(document)
    except ValidationError:
        raise _misunderstood("its answer is not the one that was expected") from None
    for part in _shown(routing):
        invocation.out.print(part, soft_wrap=False)


def _ask(invocation: Invocation, data: Path | None, query: dict[str, Any]) -> dict[str, Any]:
    directory = data or invocation.home.coordinator
    base_url = beside.address(directory)
    start = f"darkbloom coordinator serve{f' --data {data}' if data is not None else ''}"
    if base_url is None:
        raise UnreachableError(
            "No coordinator is running here",
            why=f"none has left its address in {directory}",
            next_step=f"type: {start}; or name its directory with --data DIR",
        )
    token = beside.operator_token(directory, Sources())
    try:
        reply = _get(base_url, query, token)
        document = reply.json()
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"The coordinator at {base_url} does not answer",
            why=str(error) or type(error).__name__,
            next_step=f"start it again: {start}",
        ) from None
    except ValueError:
        raise _misunderstood("it did not answer with JSON") from None
    if reply.status_code == HTTPStatus.OK and isinstance(document, dict):
        return document
    raise _refused(reply.status_code, document)


def _get(base_url: str, query: dict[str, Any], token: Secret) -> httpx.Response:
    return httpx.get(
        f"{base_url}{_PATH}",
        params=query,
        headers={"Authorization": f"Bearer {token.reveal()}"},
        timeout=TIMEOUT_S,
        trust_env=False,
    )


def _refused(status: int, document: object) -> DarkbloomError:
    error = document.get("error") if isinstance(document, dict) else None
    told = error.get("message") if isinstance(error, dict) else None
    message = _one_line(str(told or f"HTTP {status}"))
    if status == HTTPStatus.NOT_FOUND and told:
        return ModelError(
            "The coordinator does not know this model",
            why=message,
            next_step="name one of its catalogue; `coordinator serve --catalog PATH` has others",
        )
    return _misunderstood(message)


def _misunderstood(why: str) -> DarkbloomError:
    return DarkbloomError(
        "The coordinator cannot be asked",
        why=why,
        next_step="if it was started by another version of darkbloom, start it again",
    )


# ---------------------------------------------------------------- shown


def _shown(routing: _Routing) -> Iterator[str | Text | Table | Padding]:
    yield Text(f"{_one_line(routing.model)}: {routing.summary}.")
    if routing.next_step is not None:
        yield _indented(f"Next: {routing.next_step}")
    yield Text(
        f"Asked for: a prompt of {routing.prompt_tokens} tokens, an answer of up to "
        f"{routing.max_tokens}. Waiting: {routing.waiting} of {routing.waiting_limit}."
    )
    if not routing.providers:
        return
    yield ""
    yield _table(routing.providers)
    for provider in routing.providers:
        yield ""
        yield Text(f"{provider.name}, {_verdict(provider)}:")
        for reason in provider.reasons:
            yield _indented(f"{_one_line(reason.text)} ({_one_line(reason.next_step)})")
        if not provider.reasons:
            yield _indented(_cost(provider))


def _table(providers: tuple[_Provider, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("Provider", overflow="fold")
    table.add_column("Now")
    table.add_column("Cost", justify="right", no_wrap=True)
    table.add_column("Ahead", justify="right")
    table.add_column("Work", justify="right", no_wrap=True)
    for p in providers:
        work = f"{p.in_flight} of {p.max_in_flight}"
        table.add_row(p.name, _verdict(p), _seconds(p.cost_ms), str(p.queue), work)
    return table


def _verdict(provider: _Provider) -> str:
    if provider.chosen:
        return "gets it"
    return "could serve" if provider.eligible else "not now"


def _cost(provider: _Provider) -> str:
    """The terms that count, the largest first.

    Every term is there to the millisecond in `--json`.
    """
    terms = sorted(provider.cost_terms_ms.items(), key=lambda term: -term[1])
    shown = [f"{_TERMS.get(name, name)} {_seconds(ms)}" for name, ms in terms if ms > 0]
    return f"{_seconds(provider.cost_ms)} = {' + '.join(shown)}" if shown else "costs nothing"


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s"


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def _one_line(text: str) -> str:
    """What providers say of themselves, made safe for a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


COMMANDS = (explain,)
