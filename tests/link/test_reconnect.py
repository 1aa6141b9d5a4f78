"""When to dial again, and what the owner is told."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import (
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidMessage,
    InvalidStatus,
    InvalidUpgrade,
)
from websockets.frames import Close
from websockets.http11 import Response

from darkbloom_provider.link import failure as f
from darkbloom_provider.link.reconnect import (
    REFUSED_S,
    REPLACED_S,
    RETRY_AFTER_CAP_S,
    Refused,
    Retry,
    attempts_after,
    backoff_s,
    retry_or_refuse,
    wait_s,
)
from darkbloom_provider.link.socket import failure_of

PASSING: list[f.Failure] = [
    f.Unreachable("Connection refused"),
    f.UntrustedCertificate("certificate has expired"),
    f.HandshakeTimeout(),
    f.NotWebSocket("did not receive a valid HTTP response"),
    f.PeerSilent(),
    f.PeerOverLimit(),
    f.PeerStalled(),
    f.NotAccepted(15.0),
    f.ChallengesStopped(721.0),
    f.HeartbeatOverdue(81.0),
    f.InternalFault("ValueError"),
    *(f.HttpRejected(status) for status in (200, 301, 302, 307, 400, 404, 429, 500, 502, 503, 504)),
    *(f.SocketClosed(code) for code in (1000, 1001, 1002, 1005, 1006, 1008, 1009, 1011, 1012)),
]
FOR_THE_OWNER: list[f.Failure] = [
    *(f.HttpRejected(status) for status in (401, 403, 426)),
    f.SocketClosed(3000, "token revoked"),
    f.SocketClosed(3003),
    f.SocketClosed(1000, f.REPLACED_REASON),
]


@pytest.mark.parametrize("failure", PASSING, ids=repr)
def test_what_may_pass_is_retried(failure: f.Failure) -> None:
    assert isinstance(retry_or_refuse(failure), Retry)


@pytest.mark.parametrize("failure", FOR_THE_OWNER, ids=repr)
def test_what_the_owner_must_settle_waits_for_minutes(failure: f.Failure) -> None:
    verdict = retry_or_refuse(failure)
    assert isinstance(verdict, Refused)
    assert verdict.retry_s >= 600


@pytest.mark.parametrize("failure", PASSING + FOR_THE_OWNER, ids=repr)
def test_every_failure_says_what_happened_and_what_to_do(failure: f.Failure) -> None:
    problem = retry_or_refuse(failure).problem
    assert problem.what
    assert problem.next_step


def test_a_rejected_token_points_to_login() -> None:
    assert "darkbloom login" in retry_or_refuse(f.HttpRejected(401)).problem.next_step


def test_a_rejected_version_points_to_updating() -> None:
    assert "update darkbloom" in retry_or_refuse(f.HttpRejected(426)).problem.next_step


def test_a_second_provider_on_the_machine_is_explained_and_not_fought() -> None:
    verdict = retry_or_refuse(f.SocketClosed(1000, f.REPLACED_REASON))
    assert isinstance(verdict, Refused)
    assert verdict.retry_s == REPLACED_S
    assert "only one provider" in verdict.problem.next_step


def test_foreign_text_is_shown_on_one_short_line_without_credentials() -> None:
    reason = "bye\x1b[2J\n" + "eigeninference-pt-0123456789abcdef" + "x" * 500
    why = retry_or_refuse(f.SocketClosed(1011, reason)).problem.why
    assert why is not None
    assert why.isprintable()
    assert "0123456789" not in why
    assert len(why) < 160


def test_a_failure_that_travels_as_an_exception_says_what_happened() -> None:
    error = f.LinkDownError(f.PeerSilent())
    assert error.failure == f.PeerSilent()
    assert str(error) == f.PeerSilent().problem().what


# ---------------------------------------------------------------- delays


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_backoff_is_fully_jittered_and_capped(attempts: int, chance: float) -> None:
    ceiling = min(30.0, 2.0 ** min(attempts, 10))
    assert 0 <= backoff_s(attempts, lambda: chance) <= ceiling
    assert backoff_s(attempts, lambda: 0.5) == ceiling / 2


@pytest.mark.parametrize(("asked", "kept"), [(7.0, 7.0), (86_400.0, RETRY_AFTER_CAP_S), (-1.0, 0)])
def test_a_wish_to_be_left_alone_is_kept_within_reason(asked: float, kept: float) -> None:
    verdict = retry_or_refuse(f.HttpRejected(429, asked))
    assert wait_s(verdict, 0, lambda: 0.0) == kept


def test_refusals_are_spread_by_a_quarter() -> None:
    verdict = retry_or_refuse(f.HttpRejected(403))
    assert wait_s(verdict, 5, lambda: 0.0) == REFUSED_S * 0.75
    assert wait_s(verdict, 5, lambda: 1.0) == REFUSED_S * 1.25


@pytest.mark.parametrize(("registered_for", "left"), [(None, 4), (0.0, 4), (29.9, 4), (30.0, 0)])
def test_the_backoff_starts_over_only_after_30_seconds_registered(
    registered_for: float | None, left: int
) -> None:
    assert attempts_after(4, registered_for) == left


# ---------------------------------------------------------------- the library's exceptions


def _status(code: int, **headers: str) -> InvalidStatus:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InvalidStatus(Response(code, "", Headers(named), b"<html></html>"))


_EOF = InvalidMessage("did not receive a valid HTTP response")
_EOF.__cause__ = EOFError("connection closed while reading HTTP status line")
_BAD_CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
_BAD_CERTIFICATE.verify_message = "certificate has expired"

EXCEPTIONS: list[tuple[Exception, f.Failure]] = [
    (ConnectionRefusedError(111, "Connection refused"), f.Unreachable("Connection refused")),
    (OSError("Multiple exceptions"), f.Unreachable("OSError")),
    (TimeoutError("timed out during opening handshake"), f.HandshakeTimeout()),
    (_BAD_CERTIFICATE, f.UntrustedCertificate("certificate has expired")),
    (_EOF, f.Unreachable("hung up before it answered")),
    (InvalidMessage("unsupported protocol"), f.NotWebSocket("unsupported protocol")),
    (InvalidUpgrade("Upgrade", "h2c"), f.NotWebSocket("invalid Upgrade header: h2c")),
    (_status(503), f.HttpRejected(503)),
    (_status(429, Retry_After="12"), f.HttpRejected(429, 12.0)),
    (_status(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), f.HttpRejected(429)),
    (_status(429, Retry_After="9" * 400), f.HttpRejected(429)),
    (ConnectionClosedError(None, None), f.SocketClosed(1006)),
    (ConnectionClosedOK(Close(1000, "goodbye"), None), f.SocketClosed(1000, "goodbye")),
    (ConnectionClosedError(Close(1011, "x"), Close(1011, "x"), True), f.SocketClosed(1011, "x")),
    (ConnectionClosedError(None, Close(1011, "keepalive ping timeout")), f.PeerSilent()),
    (ConnectionClosedError(None, Close(1009, "over")), f.PeerOverLimit()),
    (ConnectionClosedError(Close(1009, ""), Close(1009, ""), True), f.SocketClosed(1009)),
    (ConnectionClosedError(None, Close(1002, "bad frame")), f.SocketClosed(1006)),
]


@pytest.mark.parametrize(("error", "failure"), EXCEPTIONS, ids=lambda value: repr(value)[:60])
def test_foreign_exceptions_become_failures_at_the_border(
    error: Exception, failure: f.Failure
) -> None:
    assert failure_of(error) == failure
