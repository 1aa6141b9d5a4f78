"""What a `register` message is worth: a session with its figures clamped and its claims checked.

A registration is never refused and never answered: what cannot be believed is left out, and the
provider is then not routed to, or not credited to an account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from darkbloom_provider import logs
from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.ledger import reservations, sweep
from darkbloom_provider.coordinator.offer.live import Offer
from darkbloom_provider.coordinator.providers.challenges import is_older, runtime_mismatches
from darkbloom_provider.coordinator.providers.registry import (
    Session,
    Wire,
    clamped_hardware,
    speeds,
)
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol import attestation
from darkbloom_provider.protocol.attestation import AttestationBlob, Judgement
from darkbloom_provider.protocol.boxes import BoxError, Channel, KeyPair
from darkbloom_provider.protocol.messages import ModelInfo, Register

_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_NONE: Final = Judgement(blob=None, problem="there is none")

_log = logs.get("coordinator")


@dataclass(frozen=True, slots=True)
class Registrar:
    """Turns registrations into sessions."""

    database: Database
    offer: Offer
    policy: Policy
    sources: Sources

    def sizes(self) -> dict[str, float]:
        """GB of each model of the catalogue."""
        return {entry.id: entry.size_gb for entry in self.offer.catalogue.entries if entry.active}

    async def admit(self, register: Register, wire: Wire) -> Session:
        """A session for a provider that has just registered on `wire`.

        Raises:
            LedgerUnavailableError: Accounts cannot be looked up now.
        """
        key = usable_key(register.public_key)
        judgement = (
            _NONE
            if register.attestation is None
            else attestation.judge(register.attestation, register.public_key)
        )
        if judgement.blob is not None and judgement.valid:
            judgement = replace(judgement, problem=self._binary_problem(judgement.blob))
        if register.attestation is not None and not judgement.valid:
            _log.warning("attestation_invalid", reason=judgement.problem)
        machine = machine_identity(register, judgement)
        wallet = reservations.wallet_account(register.wallet_address)
        account = await self._link(register.auth_token, wallet, machine)
        token = register.auth_token if account is not None else None
        decode, prefill = speeds(register)
        return Session(
            id=self.sources.new_id(),
            wire=wire,
            version=register.version or "",
            backend=register.backend,
            hardware=clamped_hardware(register.hardware),
            models=listed_models(register.models, self.offer.catalogue),
            offered=register.models,
            public_key=key,
            encrypted_chunks=register.encrypted_response_chunks,
            privacy=register.privacy_capabilities,
            decode_tps=decode,
            prefill_tps=prefill,
            registered_at=self.sources.now(),
            heartbeat_at=self.sources.monotonic(),
            account_id=account,
            token_sha256=people.digest(token) if token is not None else None,
            wallet_address=wallet,
            machine_id=machine,
            trust="self_signed" if judgement.valid else "none",
            attestation=judgement.blob,
            attested=judgement.valid,
            runtime_verified=not runtime_mismatches(register, self.policy),
            outdated=is_older(register.version, self.policy.min_version),
            extensions=frozenset(register.extensions or ()),
        )

    def _binary_problem(self, blob: AttestationBlob) -> str | None:
        accepted = self.policy.accepted_binary_hashes
        if not blob.binary_hash or not accepted or blob.binary_hash in accepted:
            return None
        return "its program is not on the operator's list"

    def weights(self, model: str | None) -> str:
        """The catalogue's hash of a model's weights; empty if it has none."""
        return next((e.weight_hash for e in self.offer.catalogue.entries if e.id == model), "")

    async def _link(self, token: str | None, wallet: str | None, machine: str | None) -> str | None:
        """The account to credit, with what the wallet had earned moved to it."""
        now = self.sources.now()
        account, swept = await self.database.write(
            lambda connection: _link(connection, token, wallet, machine, now)
        )
        if token is not None and account is None:
            _log.warning("device_token_unknown", wallet=wallet)
        if swept is not None and swept.verdict != "nothing":
            _log.info(
                "wallet_sweep",
                verdict=swept.verdict,
                amount_micro_usd=swept.amount,
                jobs=swept.jobs,
            )
        return account


def _link(
    connection: Connection,
    token: str | None,
    wallet: str | None,
    machine: str | None,
    now: datetime,
) -> tuple[str | None, sweep.Sweep | None]:
    account = people.account_for_device_token(connection, token) if token else None
    if account is None:
        sweep.observe_wallet(connection, address=wallet, machine_id=machine, now=now)
        return None, None
    return account, sweep.wallet_sweep(
        connection, address=wallet, account_id=account, machine_id=machine, now=now
    )


def usable_key(public_key: str) -> str:
    """The X25519 key as it was sent, or an empty text if nothing can be sealed for it."""
    try:
        Channel(KeyPair.generate(), public_key)
    except BoxError as error:
        _log.warning("public_key_unusable", reason=error.why)
        return ""
    return public_key


def machine_identity(register: Register, judgement: Judgement) -> str | None:
    """What proves that this is the machine it was: its own random identity, else its signing key.

    Money moves on the strength of this (`wallet_sweep`). A serial number is no proof: it is
    public, and below hardware trust an attestation's author writes what he likes into it.
    """
    claimed = register.machine_id or ""
    if _MACHINE_ID.fullmatch(claimed):
        return claimed
    return judgement.blob.public_key if judgement.valid and judgement.blob is not None else None


def relist(sessions: Iterable[Session], catalogue: Catalogue) -> None:
    """The catalogue has changed: let each provider serve what of its models is listed now."""
    for session in sessions:
        session.models = listed_models(session.offered, catalogue)


def listed_models(models: tuple[ModelInfo, ...], catalogue: Catalogue) -> tuple[ModelInfo, ...]:
    """The models that the catalogue offers, each once, without those of the wrong weights."""
    listed = {entry.id: entry.weight_hash for entry in catalogue.entries if entry.active}
    kept = {
        model.id: model
        for model in models
        if model.id in listed
        and not (model.weight_hash and listed[model.id] and model.weight_hash != listed[model.id])
    }
    return tuple(kept.values())
