from __future__ import annotations

import io

import pytest

from darkbloom_provider import logs

TOKEN = "eigeninference-pt-" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [TOKEN, f"auth {TOKEN}.", "Bearer abc.def", "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln"],
)
def test_what_looks_like_a_credential_is_redacted(text: str) -> None:
    redacted = logs.redact(text)
    assert logs.REDACTED in redacted
    assert "0123456789abcdef" not in redacted
    assert "def" not in redacted.replace(logs.REDACTED, "")


def test_a_secret_shows_nothing_however_it_is_printed() -> None:
    secret = logs.Secret("canary")
    assert "canary" not in f"{secret} {secret!r} {secret!s} {[secret]}"
    assert secret.reveal() == "canary"
    assert secret == logs.Secret("canary")
    assert hash(secret) == hash(logs.Secret("canary"))
    assert secret != logs.Secret("other")


def test_log_lines_never_carry_a_token() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, json=True)
    logs.get("test").warning("sent", header=f"Bearer {TOKEN}", token=logs.Secret(TOKEN))
    line = stream.getvalue()
    assert '"room": "test"' in line
    assert TOKEN not in line
