"""`darkbloom doctor`: what is wrong on this machine, and what to type next."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from darkbloom_provider import logs
from darkbloom_provider.cli.context import (
    Invocation,
    coordinator_option,
    json_option,
    pass_invocation,
)
from darkbloom_provider.doctor import bundle as bundles
from darkbloom_provider.doctor.checkup import checkup, counts, document, repair
from darkbloom_provider.doctor.finding import Finding, Verdict, someone_is_left
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.errors import DarkbloomError, ExitCode

_MARKS = {Verdict.OK: "ok", Verdict.NOTE: "-", Verdict.UNKNOWN: "?", Verdict.WRONG: "WRONG"}
_WIDTH = 26


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Put right what needs no decision of yours.")
@click.option(
    "--bundle", is_flag=True, help="Write everything into one file for somebody who helps."
)
@coordinator_option
@json_option
@pass_invocation
@click.pass_context
def command(
    ctx: click.Context,
    invocation: Invocation,
    *,
    fix: bool,
    bundle: bool,
    coordinator: str | None,
    as_json: bool,
) -> None:
    """Examine this machine: each fact with its evidence, and what to type next.

    Works without a running provider, without a network and with broken settings. Exits with 1 if
    something is wrong.
    """
    logs.configure(verbose=invocation.verbose)
    if coordinator is not None:
        coordinator = invocation.address(coordinator)
    place = Place(
        home=invocation.home,
        environ=invocation.environ,
        config_path=invocation.config_path,
        coordinator=coordinator,
    )
    findings = checkup(place)
    repaired = repair(findings) if fix else []
    if repaired:
        findings = checkup(place)
    if as_json:
        click.echo(json.dumps(document(findings, repaired), indent=2, allow_nan=False))
    else:
        for line in lines(findings, repaired, fix=fix):
            invocation.out.print(line)
    if bundle:
        path = _write_bundle(place, findings)
        invocation.err.print(f"Bundle: {path}. Look into it before you send it to anybody.")
    code = ExitCode.FAILURE if counts(findings)[Verdict.WRONG] else ExitCode.OK
    if someone_is_left():
        # The interpreter would wait at its end for what a check left running, a name server say.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    ctx.exit(code)


def lines(findings: Sequence[Finding], repaired: Sequence[str], *, fix: bool) -> Iterator[str]:
    """The report as a person reads it."""
    for what in repaired:
        yield f"Repaired: {what}"
    for finding in findings:
        yield f"{_MARKS[finding.verdict]:>5}  {finding.check:<{_WIDTH}}{finding.evidence}"
        if finding.next_step is not None:
            yield f"{'':>5}  {'':<{_WIDTH}}Next: {finding.next_step}"
    found = counts(findings)
    yield ""
    yield (
        f"{found[Verdict.WRONG]} wrong, {found[Verdict.UNKNOWN]} unknown, "
        f"{found[Verdict.OK]} in order."
    )
    if not fix and any(finding.repair for finding in findings):
        yield "Next: darkbloom doctor --fix"


def _write_bundle(place: Place, findings: Sequence[Finding]) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    path = Path.cwd() / f"darkbloom-doctor-{stamp}.zip"
    try:
        bundles.write(path, bundles.contents(place, findings))
    except OSError as error:
        raise DarkbloomError(
            f"The bundle {path} cannot be written",
            why=error.strerror,
            next_step="change to a directory that you can write to, and try again",
        ) from None
    return path
