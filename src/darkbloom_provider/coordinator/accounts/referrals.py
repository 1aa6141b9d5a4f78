"""Referrals: who brought whom, under which code.

Source: the network's referral rules. A referrer has one code for good; an account is referred at
most once. The reward is a share of the platform's fee, so with a fee of 0 there is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from sqlalchemy import Connection, bindparam, func, insert, select

from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.store.schema import entries, referrals, referrers, transfers

_CODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{1,18}[A-Za-z0-9]")
REWARD_TYPE: Final = "referral_reward"
_REFERRER = select(referrals.c.referrer).where(referrals.c.account_id == bindparam("account"))
"""Built once, as it is asked for each job."""


class ReferralError(RefusalError):
    """A referral that cannot be made."""

    type = "referral_error"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a referrer has come to."""

    code: str
    referred: int
    rewards_micro_usd: int


def public_code(text: str) -> str:
    """A code that people type, as it is stored. Invites and referrers follow the same rule.

    Raises:
        ValueError: Not 3 to 20 letters, digits and inner hyphens.
    """
    code = text.strip()
    if _CODE.fullmatch(code) is None:
        raise ValueError("a code is 3 to 20 letters, digits and hyphens, none at either end")
    return code.upper()


def register(connection: Connection, code: str, *, account_id: str, now: datetime) -> str:
    """Make an account a referrer. One that is already keeps its code, which is returned.

    Raises:
        ReferralError: The code is misspelled or another's.
    """
    try:
        chosen = public_code(code)
    except ValueError as error:
        raise ReferralError(f"The code cannot be used: {error}") from None
    own = code_of(connection, account_id)
    if own is not None:
        return own
    if _referrer(connection, chosen) is not None:
        raise ReferralError("This code is taken")
    connection.execute(insert(referrers).values(account_id=account_id, code=chosen, created_at=now))
    return chosen


def apply(connection: Connection, code: str, *, account_id: str, now: datetime) -> str:
    """Say who referred an account. The code as it is stored.

    Raises:
        ReferralError: The code is unknown or the account's own, or it has been referred before.
    """
    spelled = code.strip().upper()
    referrer = _referrer(connection, spelled)
    if referrer is None:
        raise ReferralError("This referral code is not known")
    if referrer == account_id:
        raise ReferralError("This referral code is your own")
    if referrer_of(connection, account_id) is not None:
        raise ReferralError("This account has already been referred")
    connection.execute(
        insert(referrals).values(account_id=account_id, referrer=referrer, created_at=now)
    )
    return spelled


def code_of(connection: Connection, account_id: str) -> str | None:
    """A referrer's code; None for everybody else."""
    return connection.execute(
        select(referrers.c.code).where(referrers.c.account_id == account_id)
    ).scalar_one_or_none()


def is_known(connection: Connection, code: str) -> bool:
    """Whether somebody has this code, spelled exactly so."""
    return _referrer(connection, code) is not None


def referrer_of(connection: Connection, account_id: str) -> str | None:
    """The account that referred this one, if any."""
    return connection.execute(_REFERRER, {"account": account_id}).scalar_one_or_none()


def standing(connection: Connection, account_id: str) -> Standing:
    """What a referrer has come to.

    Raises:
        ReferralError: 404, the account is no referrer.
    """
    code = code_of(connection, account_id)
    if code is None:
        raise ReferralError("This account is not a referrer", status=HTTPStatus.NOT_FOUND)
    referred = connection.execute(
        select(func.count()).select_from(referrals).where(referrals.c.referrer == account_id)
    ).scalar_one()
    rewards = connection.execute(
        select(func.coalesce(func.sum(entries.c.amount), 0))
        .join(transfers, transfers.c.id == entries.c.transfer_id)
        .where(entries.c.account_id == account_id, transfers.c.type == REWARD_TYPE)
    ).scalar_one()
    return Standing(code, referred, int(rewards))


def _referrer(connection: Connection, code: str) -> str | None:
    return connection.execute(
        select(referrers.c.account_id).where(referrers.c.code == code)
    ).scalar_one_or_none()
