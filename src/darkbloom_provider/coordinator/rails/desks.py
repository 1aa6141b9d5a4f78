"""Where money enters and leaves a coordinator: the desks, over the rail that its operator chose."""

from __future__ import annotations

from darkbloom_provider.coordinator.deposits import ledger as deposits
from darkbloom_provider.coordinator.deposits.desk import DepositDesk
from darkbloom_provider.coordinator.deposits.rail import CheckoutRail
from darkbloom_provider.coordinator.deposits.sandbox import SandboxCheckout
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.rail import PayoutRail
from darkbloom_provider.coordinator.payouts.sandbox import SandboxRail
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.errors import UsageError


def payout_desk(
    settings: Settings, database: Database, sources: Sources, base_url: str
) -> PayoutDesk | None:
    """Takes withdrawals to the bank, over the rail that the operator chose; None if nobody is."""
    chosen = settings.payouts
    if chosen.rail == "sandbox":
        base = settings.console_url or base_url
        rail: PayoutRail = SandboxRail(sources.now, base_url=base, delay=chosen.sandbox_delay)
    elif chosen.rail == "stripe" and chosen.stripe_secret_key is not None:
        # Only here, so that nobody needs the SDK who does not use it.
        from darkbloom_provider.coordinator.payouts.stripe_connect import (  # noqa: PLC0415
            StripeRail,
        )

        rail = StripeRail(
            chosen.stripe_secret_key,
            chosen.stripe_webhook_secret,
            api_base=chosen.stripe_api_base,
        )
    else:
        return None
    return PayoutDesk(database, rail, sources.now)


def deposit_desk(
    settings: Settings, database: Database, sources: Sources, base_url: str
) -> DepositDesk | None:
    """Sells credit, over the same rail; None if nobody can buy any."""
    chosen = settings.payouts
    if not chosen.deposits:
        return None
    if chosen.rail == "sandbox":
        rail: CheckoutRail = SandboxCheckout(base_url=settings.console_url or base_url)
    elif chosen.rail == "stripe" and chosen.stripe_secret_key is not None:
        # Only here, so that nobody needs the SDK who does not use it.
        from darkbloom_provider.coordinator.deposits.stripe_checkout import (  # noqa: PLC0415
            StripeCheckout,
        )

        rail = StripeCheckout(
            chosen.stripe_secret_key,
            chosen.stripe_checkout_secret,
            api_base=chosen.stripe_api_base,
        )
    else:
        return None
    return DepositDesk(database, rail, sources.now)


async def no_play_money(settings: Settings, database: Database) -> None:
    """Refuse to pay out for real what the sandbox gave away: others may have earned it by now.

    Raises:
        UsageError: The ledger holds credit that was bought in the sandbox.
    """
    if settings.payouts.rail == "stripe" and await database.read(deposits.holds_play_money):
        raise UsageError(
            "This ledger holds play money, and Stripe would pay it out",
            why="credit was bought in the sandbox",
            next_step="give the coordinator a fresh ledger: --data DIR or --database URL",
        )
