"""A loopback HTTP server that answers as Stripe's API documents, as far as it is used here.

Idempotency keys as documented (https://docs.stripe.com/api/idempotent_requests): the first result
of a key is repeated, errors included; other parameters with the same key are an idempotency error.
Objects: https://docs.stripe.com/api (accounts, account_links, transfers, payouts,
reversals, checkout sessions; charges and disputes in events).
A fault is set for the next call of a path: refuse it, fail before or after doing it, or hang up.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "sk_test_loopback"
WEBHOOK_SECRET = "whsec_loopback"
ARRIVAL = 1_777_700_000


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call."""

    how: str
    """`refuse`, `before` (500, nothing done), `after` (done, then 500), `hang_up` (done, silence),
    `limit` (429)."""
    code: str = "balance_insufficient"


@dataclass
class StripeApi:
    """Stripe's state. Everything is looked at by tests from another thread, under no load."""

    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    transfers: dict[str, dict[str, Any]] = field(default_factory=dict)
    payouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reversals: list[str] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By the last word of the path: `transfers`, `payouts`, …"""
    kept: dict[str, tuple[str, int, bytes]] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget_keys(self) -> None:
        """A day passes."""
        self.kept.clear()

    def onboard(self, external_id: str, **destination: Any) -> None:
        """The receiver gives their details."""
        account = self.accounts[external_id]
        account["payouts_enabled"] = account["details_submitted"] = True
        account["requirements"] = {"currently_due": [], "disabled_reason": None}
        bank = {"object": "bank_account", "last4": "6789", "default_for_currency": True}
        account["external_accounts"] = {"object": "list", "data": [destination or bank]}

    def answer(
        self, method: str, path: str, form: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, bytes] | None:
        """Status and body; None to hang up."""
        with self._lock:
            return self._answer(method, path, form, headers)

    def _answer(
        self, method: str, path: str, form: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, bytes] | None:
        self.calls.append(f"{method} {path}")
        if headers.get("Authorization") != f"Bearer {KEY}":
            return _error(401, "invalid_request_error", "invalid_api_key")
        key = headers.get("Idempotency-Key") if method == "POST" else None
        asked = json.dumps([path, sorted(form.items()), headers.get("Stripe-Account")])
        if key in self.kept:
            before, status, body = self.kept[key]
            if before != asked:
                return _error(400, "idempotency_error", "idempotency_key_reused")
            return status, body
        faults = self.faults.get(path.rpartition("/")[2], [])
        fault = faults.pop(0) if faults else None
        if fault is not None and fault.how == "limit":
            return _error(429, "invalid_request_error", "rate_limit")
        if fault is not None and fault.how == "refuse":
            result = _error(400, "invalid_request_error", fault.code)
        elif fault is not None and fault.how == "before":
            result = _error(500, "api_error", "")
        else:
            result = self._act(method, path, form, headers.get("Stripe-Account", ""))
        if fault is not None and fault.how == "after":
            # What was done is done, but the result that is kept is the error.
            result = _error(500, "api_error", "")
        if key is not None:
            self.kept[key] = (asked, *result)
        return None if fault is not None and fault.how == "hang_up" else result

    def _act(  # noqa: C901, PLR0911 - a table of what each call does
        self, method: str, path: str, form: dict[str, str], account: str
    ) -> tuple[int, bytes]:
        parts = path.removeprefix("/v1/").split("/")
        if parts[0] == "checkout":
            return self._checkout(method, parts[2:], form)
        match (method, parts):
            case ("POST", ["accounts"]):
                made = self._made("acct", {"object": "account", "payouts_enabled": False})
                made |= {"details_submitted": False, "type": form["type"]}
                made |= {"requirements": {"currently_due": ["individual.dob"]}}
                self.accounts[made["id"]] = made
                return _json(made)
            case ("GET", ["accounts", name]):
                return _json(self.accounts[name])
            case ("POST", ["account_links"]):
                url = f"https://connect.stripe.com/setup/e/{form['account']}/x"
                return _json({"object": "account_link", "url": url, "expires_at": ARRIVAL})
            case ("POST", ["transfers"]):
                made = self._made("tr", {"object": "transfer", "reversed": False})
                made |= {name: form[name] for name in ("destination", "transfer_group")}
                made |= {"amount": int(form["amount"]), "metadata": _metadata(form)}
                self.transfers[made["id"]] = made
                return _json(made)
            case ("GET", ["transfers"]):
                group = form["transfer_group"]
                return _list([t for t in self.transfers.values() if t["transfer_group"] == group])
            case ("GET", ["transfers", name]):
                return _json(self.transfers[name])
            case ("POST", ["transfers", name, "reversals"]):
                if self.transfers[name]["reversed"]:
                    return _error(400, "invalid_request_error", "transfer_already_reversed")
                self.transfers[name]["reversed"] = True
                self.reversals.append(name)
                return _json(self._made("trr", {"object": "transfer_reversal"}))
            case ("POST", ["payouts"]):
                made = self._made("po", {"object": "payout", "status": "pending"})
                made |= {"amount": int(form["amount"]), "method": form["method"]}
                made |= {"arrival_date": ARRIVAL, "metadata": _metadata(form), "account": account}
                self.payouts[made["id"]] = made
                return _json(made)
            case ("GET", ["payouts"]):
                return _list([p for p in self.payouts.values() if p["account"] == account])
            case ("GET", ["payouts", name]):
                return _json(self.payouts[name])
        return _error(404, "invalid_request_error", "resource_missing")

    def _checkout(self, method: str, names: list[str], form: dict[str, str]) -> tuple[int, bytes]:
        if method == "GET":
            return _json(self.sessions[names[0]])
        made = self._made("cs", {"object": "checkout.session", "status": "open"})
        made |= {"payment_status": "unpaid", "payment_intent": None, "currency": "usd"}
        made |= {"url": f"https://checkout.stripe.com/c/pay/{made['id']}"}
        cents = int(form["line_items[0][price_data][unit_amount]"])
        made |= {"amount_total": cents, "metadata": _metadata(form), "asked": form}
        self.sessions[made["id"]] = made
        return _json(made)

    def _made(self, prefix: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"{prefix}_{next(self._ids)}", **fields}

    def settle(self, payout_id: str, status: str, code: str | None = None) -> dict[str, Any]:
        """The bank's word; the event that tells it."""
        payout = self.payouts[payout_id]
        payout["status"] = status
        if code is not None:
            payout |= {"failure_code": code, "failure_message": "The bank said no."}
        return self.event(f"payout.{status}", dict(payout), account=payout["account"])

    def pay(self, session_id: str, cents: int | None = None, **changes: Any) -> dict[str, Any]:
        """The payer pays; the event that tells it."""
        session = self.sessions[session_id]
        session |= {"status": "complete", "payment_status": "paid"}
        session["payment_intent"] = f"pi_of_{session_id}"
        if cents is not None:
            session["amount_total"] = cents
        return self.event("checkout.session.completed", dict(session) | changes)

    def charge(self, session_id: str, kind: str, **fields: Any) -> dict[str, Any]:
        """News about the payment's charge, whose metadata is the payment's."""
        asked = self.sessions[session_id]["asked"]
        metadata = _metadata(asked, "payment_intent_data[metadata][")
        subject = {"object": "charge", "payment_intent": f"pi_of_{session_id}"}
        return self.event(kind, subject | {"metadata": metadata} | fields)

    def event(self, kind: str, subject: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "id": f"evt_{next(self._ids)}",
            "object": "event",
            "type": kind,
            "data": {"object": subject},
            **fields,
        }


def signed(event: dict[str, Any], now: datetime, secret: str = WEBHOOK_SECRET) -> dict[str, Any]:
    """An event as Stripe would post it: arguments for an HTTP client."""
    body = json.dumps(event)
    timestamp = int(now.timestamp())
    signature = hmac.new(secret.encode(), f"{timestamp}.{body}".encode(), hashlib.sha256)
    header = f"t={timestamp},v1={'0' * 64},v1={signature.hexdigest()},v0=old"
    return {"content": body.encode(), "headers": {"Stripe-Signature": header}}


def _metadata(form: dict[str, str], prefix: str = "metadata[") -> dict[str, str]:
    return {
        name.removeprefix(prefix).removesuffix("]"): value
        for name, value in form.items()
        if name.startswith(prefix)
    }


def _json(value: Any, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(value).encode()


def _list(values: list[dict[str, Any]]) -> tuple[int, bytes]:
    return _json({"object": "list", "data": values, "has_more": False, "url": "/v1/x"})


def _error(status: int, kind: str, code: str) -> tuple[int, bytes]:
    return _json({"error": {"type": kind, "code": code, "message": f"No: {code}"}}, status)


@contextlib.contextmanager
def stripe_api() -> Iterator[tuple[StripeApi, str]]:
    """The API and its address."""
    api = StripeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            target = urlsplit(self.path)
            form = dict(parse_qsl(target.query) + parse_qsl(self.rfile.read(length).decode()))
            result = api.answer(self.command, target.path, form, dict(self.headers))
            if result is None:
                self.close_connection = True
                return
            status, body = result
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Request-Id", "req_loopback")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
