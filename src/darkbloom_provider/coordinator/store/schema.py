"""The tables as queries see them. `migrations` creates them; a test holds the two to each other.

Double entry: every movement is one row of `transfers` with exactly two rows of `entries`, whose
amounts are opposite. So the balances of all accounts, the internal ones included, sum to zero at
every moment. The public ledger is the entries of the accounts that are not internal.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970-01-01 UTC. Exact: no floating point is involved.

    Raises:
        ValueError: `instant` does not say its time zone.
    """
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return (instant - EPOCH) // MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as integer microseconds so that it sorts and compares."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """To the database."""
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """From the database."""
        return None if value is None else EPOCH + value * MICROSECOND


# SQLite grows a key by itself only where the column is spelled INTEGER.
_IDENTITY = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()


def _text(name: str, *, key: bool = False, null: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=null)


def _amount(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _id() -> Column[int]:
    return Column("id", _IDENTITY, primary_key=True)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _time(name: str, *, null: bool = False) -> Column[datetime]:
    return Column(name, Instant, nullable=null)


accounts = Table(
    "accounts",
    metadata,
    _text("id", key=True),
    _text("kind"),
    _amount("balance"),
    _amount("withdrawable"),
    _time("created_at"),
)

transfers = Table(
    "transfers", metadata, _id(), _text("type"), _text("reference"), _time("created_at")
)

entries = Table(
    "entries",
    metadata,
    _id(),
    Column("transfer_id", BigInteger, nullable=False),
    _text("account_id"),
    _amount("amount"),
    _amount("withdrawable"),
    _amount("balance_after"),
)

coordinator_runs = Table("coordinator_runs", metadata, _id(), _time("started_at"))

jobs = Table(
    "jobs",
    metadata,
    _text("reservation_id", key=True),
    _text("job_id", null=True),
    _text("account_id"),
    _text("model"),
    _text("state"),
    _amount("run"),
    _amount("reserved"),
    _amount("withdrawable_reserved"),
    _amount("cost"),
    _amount("payout"),
    _amount("fee"),
    _text("beneficiary", null=True),
    _amount("prompt_tokens"),
    _amount("completion_tokens"),
    _amount("input_price"),
    _amount("output_price"),
    _amount("minimum"),
    _time("created_at"),
    _time("closed_at", null=True),
)

earnings = Table(
    "earnings",
    metadata,
    _id(),
    _text("account_id"),
    _text("provider_id"),
    _text("provider_key"),
    _text("machine_id", null=True),
    _text("job_id"),
    _text("model"),
    _amount("amount"),
    _amount("prompt_tokens"),
    _amount("completion_tokens"),
    _time("created_at"),
)

earning_totals = Table(
    "earning_totals",
    metadata,
    _text("account_id", key=True),
    Column("day", Instant, primary_key=True, autoincrement=False),
    _text("model", key=True),
    _text("provider_key", key=True),
    _text("machine_id", key=True),
    _amount("amount"),
    _amount("jobs"),
    _amount("prompt_tokens"),
    _amount("completion_tokens"),
    _time("first_at"),
    _time("last_at"),
)

wallet_payouts = Table(
    "wallet_payouts",
    metadata,
    _id(),
    _text("address"),
    _text("provider_id"),
    _text("provider_key"),
    _text("machine_id", null=True),
    _text("job_id"),
    _text("model"),
    _amount("amount"),
    _amount("prompt_tokens"),
    _amount("completion_tokens"),
    Column("settled", Boolean, nullable=False),
    _time("created_at"),
)

wallet_sightings = Table(
    "wallet_sightings",
    metadata,
    _text("address", key=True),
    _text("machine_id", key=True),
    _time("first_seen"),
)

wallet_claims = Table(
    "wallet_claims", metadata, _text("address", key=True), _text("account_id"), _time("claimed_at")
)

users = Table(
    "users",
    metadata,
    _text("account_id", key=True),
    _text("email"),
    _time("created_at"),
    _text("password_hash", null=True),
    _flag("is_admin"),
    _amount("session_generation"),
)

ended_sessions = Table(
    "ended_sessions", metadata, _text("session_id", key=True), _time("expires_at")
)

api_keys = Table(
    "api_keys",
    metadata,
    _text("key_sha256", key=True),
    _text("account_id"),
    _time("created_at"),
    _time("revoked_at", null=True),
    _text("name"),
    _text("hint"),
)

device_codes = Table(
    "device_codes",
    metadata,
    _text("device_code_sha256", key=True),
    _text("user_code"),
    _text("state"),
    _text("account_id", null=True),
    _time("created_at"),
    _time("expires_at"),
)

device_tokens = Table(
    "device_tokens",
    metadata,
    _text("token_sha256", key=True),
    _text("account_id"),
    _text("label"),
    _time("created_at"),
    _time("revoked_at", null=True),
)

invites = Table(
    "invites",
    metadata,
    _text("code", key=True),
    _amount("amount"),
    _amount("max_uses"),
    _amount("used_count"),
    _flag("active"),
    _time("created_at"),
    _time("expires_at", null=True),
)

invite_redemptions = Table(
    "invite_redemptions",
    metadata,
    _text("code", key=True),
    _text("account_id", key=True),
    _time("redeemed_at"),
)

referrers = Table(
    "referrers", metadata, _text("account_id", key=True), _text("code"), _time("created_at")
)

referrals = Table(
    "referrals", metadata, _text("account_id", key=True), _text("referrer"), _time("created_at")
)

payout_accounts = Table(
    "payout_accounts",
    metadata,
    _text("account_id", key=True),
    _text("rail", key=True),
    _text("external_id"),
    _text("status"),
    _text("destination_type"),
    _text("destination_last4"),
    _flag("instant_eligible"),
    _time("updated_at"),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    _text("id", key=True),
    _text("account_id"),
    _text("rail"),
    _text("external_id"),
    _text("destination_type"),
    _text("destination_last4"),
    _amount("amount"),
    _amount("fee"),
    _amount("net"),
    _text("method"),
    _text("status"),
    _text("transfer_id", null=True),
    _text("payout_id", null=True),
    _time("arrival_at", null=True),
    _text("failure_reason"),
    _flag("refunded"),
    _text("reversal"),
    _amount("tries"),
    _amount("payout_attempt"),
    _time("next_step_at", null=True),
    _time("created_at"),
    _time("updated_at"),
)

rail_events = Table(
    "rail_events",
    metadata,
    _text("rail", key=True),
    _text("event_id", key=True),
    _text("type"),
    _time("received_at"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _text("account_id", key=True),
    _text("idempotency_key", key=True),
    _text("request_sha256"),
    _text("resource"),
    Column("status", BigInteger),
    _text("reply", null=True),
    _time("created_at"),
)

prices = Table(
    "prices",
    metadata,
    _id(),
    _text("account_id"),
    _text("model"),
    Column("input_price", BigInteger),
    Column("output_price", BigInteger),
    _time("since"),
)

models = Table(
    "models",
    metadata,
    _text("id", key=True),
    _flag("listed"),
    _text("s3_name"),
    _text("display_name"),
    _text("model_type"),
    Column("size_gb", Double, nullable=False),
    _text("architecture"),
    _text("description"),
    _amount("min_ram_gb"),
    _flag("active"),
    _text("weight_hash"),
    _time("changed_at"),
)

releases = Table(
    "releases",
    metadata,
    _text("version", key=True),
    _text("platform", key=True),
    _text("binary_hash"),
    _text("bundle_hash"),
    _text("python_hash"),
    _text("runtime_hash"),
    _text("template_hashes"),
    _text("url"),
    _text("changelog"),
    _flag("active"),
    _time("created_at"),
)

deposits = Table(
    "deposits",
    metadata,
    _text("id", key=True),
    _text("account_id"),
    _text("rail"),
    _text("external_id", null=True),
    _text("payment_id", null=True),
    _amount("amount"),
    _amount("credited"),
    _amount("refunded"),
    _amount("disputed"),
    _text("referral_code"),
    _text("status"),
    _time("created_at"),
    _time("completed_at", null=True),
)
