"""What `serve` and `status` both say of a report. Light: the daemon keeps what it imports."""

from __future__ import annotations

from darkbloom_provider.control.models import AccountStatus, PostureStatus

_FACTS = {
    "sip_enabled": "SIP",
    "secure_boot_enabled": "Secure Boot",
    "rdma_disabled": "RDMA off",
    "hypervisor_active": "hypervisor",
    "authenticated_root": "sealed system",
}


def account_line(account: AccountStatus) -> str:
    """Whom the earnings go to."""
    if account.linked:
        return "linked" + (f" ({account.account_id})" if account.account_id else "")
    kept = f"; earnings are kept under {account.wallet_address}" if account.wallet_address else ""
    return f"not linked{kept}. Run `darkbloom login`"


def posture_line(posture: PostureStatus) -> str:
    """What is said to the coordinator about this machine."""
    words = {None: "unknown", True: "yes", False: "no"}
    facts = [
        f"{_FACTS.get(name, name)} {words[value]}{' (claimed)' * (name in posture.claimed)}"
        for name, value in posture.facts.items()
    ]
    kind = "DEVELOPMENT, not measured" if posture.kind == "development" else posture.kind
    return f"{kind}: {', '.join(facts)}" if facts else kind
