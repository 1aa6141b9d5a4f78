"""Stripe's secrets come from where nobody else can read them, and are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from keyring.errors import NoKeyringError

from darkbloom_provider.coordinator.payouts.stripe_secrets import SERVICE, stripe_secret
from darkbloom_provider.coordinator.settings import Payouts
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret

VARIABLE = "DARKBLOOM_STRIPE_SECRET_KEY"


def no_keyring(_service: str, _name: str) -> str | None:
    raise NoKeyringError


def test_the_environment_comes_first_then_the_file_then_the_keyring(tmp_path: Path) -> None:
    def look(**environ: str) -> str | None:
        found = stripe_secret(
            "secret-key",
            directory=tmp_path,
            environ=environ,
            ask_keyring=lambda service, name: f"{service}/{name}",
        )
        return found.reveal() if found else None

    assert look() == f"{SERVICE}/stripe-secret-key"
    file = tmp_path / "stripe-secret-key"
    file.touch(0o600)
    file.write_text("sk_file\n")
    assert look() == "sk_file"
    assert look(**{VARIABLE: " sk_environment "}) == "sk_environment"
    assert look(**{VARIABLE: ""}) == "sk_file"


def test_without_any_there_is_none_and_stripe_cannot_be_chosen(tmp_path: Path) -> None:
    for name in ("secret-key", "webhook-secret"):
        found = stripe_secret(name, directory=tmp_path, environ={}, ask_keyring=no_keyring)
        assert found is None
    with pytest.raises(UsageError) as refused:
        Payouts("stripe")
    assert refused.value.next_step is not None
    assert VARIABLE in refused.value.next_step


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "stripe-secret-key"
    file.write_text("sk_live_secret")
    file.chmod(mode)
    with pytest.raises(UsageError) as refused:
        stripe_secret("secret-key", directory=tmp_path, environ={}, ask_keyring=no_keyring)
    assert "sk_live_secret" not in "\n".join(refused.value.lines())


def test_settings_do_not_show_them() -> None:
    shown = repr(Payouts("stripe", stripe_secret_key=Secret("sk_live_secret")))
    assert "sk_live_secret" not in shown
