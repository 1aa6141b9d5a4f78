"""Every kind of credential that can be shown to a running coordinator, good and bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, insert

from darkbloom_provider.coordinator.accounts import people, sign_in
from darkbloom_provider.coordinator.accounts.people import DEVICE_TOKEN_PREFIX, Identity, digest
from darkbloom_provider.coordinator.accounts.session_tokens import SESSION_ID_BYTES, SessionKeys
from darkbloom_provider.coordinator.store.schema import device_tokens
from support.network import Network

Headers = dict[str, str]


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


@dataclass(slots=True)
class Person:
    """A user of a network with one of each of their credentials."""

    net: Network
    account_id: str
    email: str
    api_key: str
    device_token: str

    def session(
        self, *, lifetime: timedelta = timedelta(hours=1), by: Identity | None = None
    ) -> str:
        """A new session, so that a request that ends one does not disturb the next."""
        services = self.net.coordinator.services
        return (
            (by or services.identity)
            .sessions.issue(
                self.account_id,
                session_id=services.random_hex(SESSION_ID_BYTES),
                now=services.clock(),
                lifetime=lifetime,
            )
            .reveal()
        )

    async def ended_session(self) -> str:
        """A session that was signed out of."""
        services, token = self.net.coordinator.services, self.session()
        session = services.identity.sessions.verify(token, now=services.clock())
        await sign_in.sign_out(services, session)
        return token


async def person(net: Network, name: str, *, admin: bool = False) -> Person:
    """Make a user."""
    operator, services = net.coordinator.operator, net.coordinator.services
    account_id = await operator.create_user(f"{name}@example.org")
    if admin:
        await services.db.write(lambda c: people.set_admin(c, account_id, is_admin=True))
    api_key = (await operator.create_api_key(account_id)).reveal()
    token, now = DEVICE_TOKEN_PREFIX + services.random_hex(32), services.clock()
    row = {"token_sha256": digest(token), "account_id": account_id, "label": f"device-of-{name}"}

    def link(connection: Connection) -> None:
        connection.execute(insert(device_tokens).values(**row, created_at=now))

    await services.db.write(link)
    return Person(net, account_id, f"{name}@example.org", api_key, token)


Credentials = dict[str, Callable[[], Headers]]
"""The headers behind each name; made anew for each request."""


async def every_credential(
    user: Person, admin: Person, admin_key: str, release_key: str
) -> Credentials:
    """What a stranger, a user, their machine and the operator can show."""
    ended = await user.ended_session()
    stranger = Identity(SessionKeys.generate())
    return {
        "none": dict,
        "garbage": lambda: bearer("garbage"),
        "empty": lambda: {"Authorization": "Bearer"},
        "basic": lambda: {"Authorization": "Basic dXNlcjpwYXNz"},
        "unknown key": lambda: bearer("eigeninference-" + "0" * 64),
        "unknown device": lambda: bearer(DEVICE_TOKEN_PREFIX + "0" * 64),
        "expired session": lambda: bearer(user.session(lifetime=timedelta(seconds=-1))),
        "ended session": lambda: bearer(ended),
        "forged session": lambda: bearer(user.session(by=stranger)),
        "device": lambda: bearer(user.device_token),
        "key": lambda: bearer(user.api_key),
        "key in x-api-key": lambda: {"x-api-key": user.api_key},
        "device in x-api-key": lambda: {"x-api-key": user.device_token},
        "garbage in x-api-key": lambda: {"x-api-key": "garbage"},
        "empty bearer, key in x-api-key": lambda: {
            "Authorization": "Bearer",
            "x-api-key": user.api_key,
        },
        "garbage bearer, key in x-api-key": lambda: bearer("garbage") | {"x-api-key": user.api_key},
        "session": lambda: bearer(user.session()),
        "operator": lambda: bearer(admin_key),
        "release key": lambda: bearer(release_key),
        "admin key": lambda: bearer(admin.api_key),
        "admin session": lambda: bearer(admin.session()),
    }
