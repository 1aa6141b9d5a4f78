"""What a coordinator's REST API answers. Foreign text: unknown fields pass, `null` lists are empty.

Source of the shapes: the network's REST API (health, pricing, device login, provider earnings).
Money is always read from the integer `*_micro_usd` fields, never from the decimal texts beside
them. Text that may reach a terminal is made harmless here, at the border.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.money import MAX_MICRO_USD

DEVICE_TOKEN_READ = "device-token-read"  # noqa: S105 - the name of an extension, not a token
"""Extension in `/health`: a device token may read its own account's earnings."""

LONGEST_LINE = 300
LONGEST_TOKEN = 4096


def one_line(text: str) -> str:
    """Foreign `text` as one line without control characters, cut at `LONGEST_LINE` characters."""
    cut = text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 1] + "…"
    return "".join(character if character.isprintable() else " " for character in cut).strip()


def _utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time outside the calendar") from None


def _null_is_empty(value: Any) -> Any:  # noqa: ANN401 - sees JSON before it has been checked
    return () if value is None else value


def is_token(text: str) -> bool:
    """Whether `text` could be a token: printable ASCII without a space, fit for an HTTP header."""
    fits = 0 < len(text) <= LONGEST_TOKEN
    return fits and text.isascii() and text.isprintable() and " " not in text


def _secret(value: Any) -> Any:  # noqa: ANN401 - as above
    if isinstance(value, str) and is_token(value):
        return Secret(value)
    raise ValueError("not a token")


def _clamped(low: float, high: float) -> AfterValidator:
    # min() comes first in the pair, so that even a NaN ends up inside.
    return AfterValidator(lambda value: max(low, min(high, value)))


MicroUsd = Annotated[int, Field(strict=True, ge=-MAX_MICRO_USD, le=MAX_MICRO_USD)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_MICRO_USD)]
Line = Annotated[str, AfterValidator(one_line)]
Moment = Annotated[datetime, AfterValidator(_utc)]
Token = Annotated[Secret, BeforeValidator(_secret)]


class Reply(BaseModel):
    """Base of all replies. `hide_input_in_errors` keeps tokens out of validation messages."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", arbitrary_types_allowed=True, hide_input_in_errors=True
    )


class Health(Reply):
    """`GET /health`."""

    status: Line = ""
    providers: Count | None = None
    """Every connected provider session, routable or not."""
    extensions: Annotated[tuple[str, ...], BeforeValidator(_null_is_empty)] = ()
    """What this coordinator can beyond the network's own one; that one does not send the key."""


class FleetEntry(Reply):
    """One provider of `GET /v1/providers/attestation`, as far as it is read here."""

    memory_gb: Count = 0
    models: Annotated[tuple[Line, ...], BeforeValidator(_null_is_empty)] = ()


class FleetList(Reply):
    """`GET /v1/providers/attestation`: everybody who is connected."""

    providers: Annotated[tuple[FleetEntry, ...], BeforeValidator(_null_is_empty)]


class ModelPrice(Reply):
    """One row of `GET /v1/pricing`: micro-USD per 1 000 000 tokens."""

    model: str
    input_price: Count
    output_price: Count


class PriceList(Reply):
    """`GET /v1/pricing`."""

    prices: Annotated[tuple[ModelPrice, ...], BeforeValidator(_null_is_empty)] = ()


class EarningRow(Reply):
    """One credited job of a linked machine."""

    id: int = 0
    job_id: Line = ""
    model: Line = ""
    amount_micro_usd: MicroUsd
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    created_at: Moment | None = None


class NodeEarnings(Reply):
    """`GET /v1/provider/node-earnings`: lifetime figures of one provider key."""

    earnings: Annotated[tuple[EarningRow, ...], BeforeValidator(_null_is_empty)] = ()
    total_micro_usd: MicroUsd
    count: Count


class AccountEarnings(NodeEarnings):
    """`GET /v1/provider/account-earnings`: lifetime figures and balance of an account."""

    account_id: Line = ""
    available_balance_micro_usd: MicroUsd
    withdrawable_balance_micro_usd: MicroUsd | None = None


class WalletPayout(Reply):
    """One payout kept under a wallet address, of a machine that was not linked."""

    id: int = 0
    job_id: Line = ""
    model: Line = ""
    amount_micro_usd: MicroUsd
    timestamp: Moment | None = None


class WalletEarnings(Reply):
    """`GET /v1/provider/earnings`: what is kept under a wallet address."""

    wallet_address: Line = ""
    balance_micro_usd: MicroUsd
    total_earned_micro_usd: MicroUsd
    total_jobs: Count
    payouts: Annotated[tuple[WalletPayout, ...], BeforeValidator(_null_is_empty)] = ()
    """All of them, oldest first, unless the coordinator rebuilt them from its ledger."""


class DeviceCode(Reply):
    """`POST /v1/device/code`: what the owner types, and what the machine polls with."""

    device_code: Token
    user_code: Line
    verification_uri: Annotated[str, Field(pattern=r"^https?://[!-~]+$", max_length=2000)]
    """An http(s) address and nothing else, because it is handed to the browser."""
    expires_in: Annotated[float, _clamped(1, 86_400)] = 900
    """Seconds."""
    interval: Annotated[float, _clamped(1, 60)] = 5
    """Seconds between two polls."""


class DeviceGrant(Reply):
    """`POST /v1/device/token`, approved."""

    status: Literal["authorized"]
    token: Token
    account_id: Line | None = None


class ErrorDetail(Reply):
    """The inside of an error body."""

    type: Line = ""
    message: Line = ""


class ErrorBody(Reply):
    """`{"error": {"type", "message"}}`."""

    error: ErrorDetail


class DeviceStatus(Reply):
    """Any other answer to a poll."""

    status: Line = ""
    error: ErrorDetail | None = None
