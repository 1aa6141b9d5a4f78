"""`darkbloom status`: what the running provider does now."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import click

from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.cli.phrases import account_line, posture_line
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.control.models import (
    CoordinatorStatus,
    JournalStatus,
    ModelStatus,
    StatusReport,
)
from darkbloom_provider.protocol.money import format_usd

Line = tuple[str, str]
"""A label and its value; an empty label continues the line above."""

_WIDTH = 16
_NAMES_SHOWN = 8
_PHASES = {
    "starting": "starting",
    "loading": "loading models",
    "serving": "serving",
    "draining": "stopping: finishing what runs, taking nothing new",
    "stopped": "stopped",
}


@click.command("status")
@json_option
@pass_invocation
def command(invocation: Invocation, *, as_json: bool) -> None:
    """Show what the running provider does now.

    Exits with 3 when no provider is running.
    """
    client = DaemonClient(invocation.home.control_socket)
    report = client.status()
    if client.skew is not None:
        invocation.err.print(f"Warning: {client.skew}")
    if as_json:
        invocation.out.print(report.model_dump_json(indent=2))
        return
    for label, value in lines(report):
        invocation.out.print(f"{label + ':' if label else '':<{_WIDTH}}{value}")


def lines(report: StatusReport) -> Iterator[Line]:
    """The report as a person reads it."""
    yield (
        "Provider",
        (
            f"{_PHASES[report.phase]} (version {report.version}, pid {report.pid}, "
            f"up {duration(report.uptime)})"
        ),
    )
    if report.local is None:
        yield from _coordinator(report.coordinator, report.now)
        yield "Account", account_line(report.account)
    else:
        yield "Endpoint", f"{report.local.url}/v1, for programs on this machine"
        yield "", f"Key: in {report.local.key_file}"
    for model in report.models:
        yield "Model", _model(model)
    jobs = report.jobs
    yield "In flight", _count(jobs.in_flight, "request")
    yield (
        "Served",
        (
            f"{_count(jobs.served, 'request')}, {_count(jobs.completion_tokens, 'token')} "
            f"generated ({jobs.failed} failed, {jobs.cancelled} cancelled)"
        ),
    )
    if jobs.ignored_parameters:
        names = sorted(jobs.ignored_parameters.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{name} ({count})" for name, count in names[:_NAMES_SHOWN])
        yield "Ignored", f"parameters nobody knows: {shown}"
    if report.local is None:
        yield from _journal(report.journal)
        yield "Posture", posture_line(report.posture)
    for warning in report.warnings:
        yield "Note", warning


def duration(span: dt.timedelta) -> str:
    """A length of time in its two largest units.

    >>> duration(dt.timedelta(hours=3, minutes=4, seconds=5))
    '3 h 4 min'
    """
    seconds = max(0, int(span.total_seconds()))
    days, seconds = divmod(seconds, 86_400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    shown = [(amount, unit) for amount, unit in parts[first : first + 2] if amount]
    return " ".join(f"{amount} {unit}" for amount, unit in shown) or "0 s"


def _coordinator(link: CoordinatorStatus, now: dt.datetime) -> Iterator[Line]:
    def ago(moment: dt.datetime | None) -> str:
        return "" if moment is None else f" for {duration(now - moment)}"

    match link.phase:
        case "registered" | "draining" if link.registered_at is not None:
            state = f"connected{ago(link.registered_at)}"
        case "connecting":
            state = f"connecting{ago(link.since)}"
        case "waiting" | "refused":
            verdict = "refused" if link.phase == "refused" else "not connected"
            wait = link.retry_at - now if link.retry_at is not None else dt.timedelta()
            state = f"{verdict}{ago(link.since)}, next attempt in {duration(wait)}"
        case "not started":
            state = "not asked yet"
        case _:
            state = "not connected"
    yield "Coordinator", f"{state} ({link.url})"
    problem = link.last_problem
    if problem is not None:
        yield "", problem.what if problem.why is None else f"{problem.what}: {problem.why}"
        if problem.next_step is not None:
            yield "", f"Next: {problem.next_step}"


def _model(model: ModelStatus) -> str:
    detail = f": {model.detail}" if model.detail else ""
    busy = f", {_count(model.in_flight, 'request')}" if model.in_flight else ""
    return f"{model.id} ({model.state}{detail}{busy})"


def _journal(journal: JournalStatus) -> Iterator[Line]:
    if journal.jobs:
        yield (
            "Journal",
            (
                f"{_count(journal.jobs, 'job')} on this machine in all, "
                f"estimated {format_usd(journal.estimate_micro_usd)}"
            ),
        )
    if journal.problem is not None:
        yield "Journal", f"{journal.problem.what}; {journal.unwritten} waiting to be written"
        if journal.problem.next_step is not None:
            yield "", f"Next: {journal.problem.next_step}"


def _count(amount: int, thing: str) -> str:
    return f"{amount} {thing}{'' if amount == 1 else 's'}"
