"""A home for a real `darkbloom serve` process that works for a coordinator on loopback."""

from __future__ import annotations

from pathlib import Path

from darkbloom_provider.account.credentials import Credentials, CredentialStore
from darkbloom_provider.config import http_base
from darkbloom_provider.earnings.journal import JobRecord, Journal
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.bundled import SMOLLM2_ID
from darkbloom_provider.paths import Home
from support.network import Network
from support.processes import Program, environment, until

MODEL = SMOLLM2_ID
"""The id every home serves; the catalogue lists it. The weights behind it may be any."""
PLAIN_WORDS = "because which would there " * 20
"""Long words that are one token each to the tiny model. A coordinator estimates a prompt by its
bytes and bounds the cost by the estimate: of this prompt it is high enough."""


def provider_home(root: Path, coordinator: str, model: Path, *, heartbeat_s: int = 1) -> Home:
    """A home whose settings name the coordinator, with one installed model."""
    home = Home(root)
    home.models.mkdir(parents=True)
    (home.models / MODEL).symlink_to(model, target_is_directory=True)
    settings = root / "config" / "darkbloom" / "provider.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        f'[coordinator]\nurl = "{coordinator}"\nheartbeat_interval_secs = {heartbeat_s}\n'
        '[attestation]\nposture = "development"\n'
    )
    return home


def link(home: Home, coordinator: str, token: str, account_id: str) -> None:
    """Keep a device token in the home, as `darkbloom login` would."""
    store = CredentialStore(home, environment(home.root))
    store.save(http_base(coordinator), Credentials(Secret(token), account_id))


async def until_served(net: Network, provider: Program) -> None:
    """Wait until the coordinator would send the provider work."""
    await until(lambda: net.verified() == 1, "the provider to be routable", of=provider)


def journal_rows(home: Home) -> list[JobRecord]:
    """What the provider wrote down, newest first."""
    with Journal.view(home.journal) as journal:
        return journal.recent(1000)
