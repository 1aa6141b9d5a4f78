"""Kills a coordinator at one failpoint after another, and proves the books after each.

Run as a program: it stays free of threads, so that it can fork a victim and then a survivor for
every run without starting Python anew. A failpoint is each moment before and after a statement, a
commit, and a call of the bank. Prints one JSON object: how many runs there were.

    python -m support.kill_runs DIRECTORY STEP [POSTGRES_URL]
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, event, func, make_url, select

from darkbloom_provider.coordinator.ledger import books, reservations
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.reservations import Refund, Reserve, Serving, Settle
from darkbloom_provider.coordinator.ledger.sweep import wallet_sweep
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.rail import Order, PayoutReport, Receipt
from darkbloom_provider.coordinator.payouts.sandbox import SandboxRail
from darkbloom_provider.coordinator.store.schema import deposits, jobs, metadata, withdrawals
from support.books import (
    CONSUMER,
    LINKED,
    MACHINE,
    OWNER,
    QWEN,
    QWEN_PRICE,
    UNLINKED,
    WALLET,
    Clock,
)
from support.desk import Desk, front_desk

WITHDRAW = "/v1/billing/withdraw/stripe"
CREATE = "/v1/billing/stripe/create-session"
ONBOARD = "/v1/billing/stripe/onboard"
KEYS = ("paid", "failed")
CROWD = ("done2", "left2", "lost2", "wallet2")
_SHOWN_CHARACTERS = 6_000


@dataclass(frozen=True)
class Done:
    """How many coordinators were killed, and at how many moments one could be."""

    runs: int
    failpoints: int


def kill_at_failpoints(directory: Path, place: Path | str, *, step: int) -> Done:
    """Run this module as a program: kill at every `step`th failpoint. Fails if the books do."""
    url = [] if isinstance(place, Path) else [place]
    ended = subprocess.run(
        [sys.executable, "-m", "support.kill_runs", str(directory), str(step), *url],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-_SHOWN_CHARACTERS:]
    return Done(**json.loads(ended.stdout.splitlines()[-1]))


class Failpoints:
    """Counts moments once armed, and ends the process at one of them."""

    def __init__(self, fatal: int) -> None:
        self.armed = False
        self.passed = 0
        self._fatal = fatal

    def reach(self, *_: object, **__: object) -> None:
        if not self.armed:
            return
        if self.passed == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def watch(self) -> None:
        """Put a failpoint around every statement and every commit of this process."""
        for moment in ("before_cursor_execute", "after_cursor_execute", "commit", "begin"):
            event.listen(Engine, moment, self.reach)

    def watch_commits(self, engine: Engine) -> None:
        """A commit has an after, which SQLAlchemy has no event for."""
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            commit(connection)
            self.reach()

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]  # only here


class Bank(SandboxRail):
    """A rail whose memory, a directory of files, survives its callers."""

    def __init__(self, directory: Path, clock: Clock, points: Failpoints) -> None:
        super().__init__(clock, base_url="http://coordinator.test:8080")
        self._directory = directory
        self._points = points

    def _keep(self, name: str, cents: int) -> None:
        self._points.reach()
        path = self._directory / name
        if not path.exists():
            path.write_text(str(cents))
        assert path.read_text() == str(cents)
        self._points.reach()

    async def transfer(self, order: Order) -> str:
        self._keep(f"tr-{order.withdrawal_id}", order.cents)
        return await super().transfer(order)

    async def pay_out(self, order: Order) -> Receipt:
        self._keep(f"po-{order.withdrawal_id}", order.cents)
        return await super().pay_out(order)

    async def report(self, order: Order, receipt: Receipt) -> PayoutReport:
        self._points.reach()
        return await super().report(order, receipt)

    async def reverse(self, order: Order, transfer_id: str) -> None:
        self._keep(f"rv-{order.withdrawal_id}", order.cents)


class Run:
    """One coordinator on one ledger: to be killed, or to pick up what another one left."""

    def __init__(self, directory: Path, place: Path | str, points: Failpoints) -> None:
        self.directory = directory
        self.place = place
        self.points = points
        self.acknowledged = directory / "acknowledged"

    @asynccontextmanager
    async def desk(self) -> AsyncIterator[Desk]:
        bank = self.directory / "bank"
        async with front_desk(
            self.directory, where=self.place, rail=lambda clock: Bank(bank, clock, self.points)
        ) as desk:
            # Ids must not repeat what the one before us used.
            object.__setattr__(desk.services, "new_id", lambda: os.urandom(16).hex())
            self.points.watch_commits(desk.services.db._storage.writer)
            yield desk

    async def step(self, name: str, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Do something, and remember that its success was told to somebody."""
        await act()
        with self.acknowledged.open("a") as file:
            file.write(f"{name}\n")
        self.points.reach()

    async def trade(self, desk: Desk) -> None:
        """Four jobs: completed, left half way, failed, and one for a wallet that is then swept.

        One by one, and then four more that begin and end at the same time.
        """
        for name in ("done", "left", "lost", "wallet"):
            await self.step(f"reserve {name}", functools.partial(reserve, desk, name))
        await self.step("settle done", lambda: desk.books(lambda s: s.settle("done", 120, 380)))
        await self.step("settle left", lambda: desk.books(lambda s: s.leave("left", 120, 10)))
        await self.step("refund lost", lambda: desk.books(lambda s: s.refund("lost")))
        await self.step(
            "settle wallet",
            lambda: desk.books(lambda s: s.settle("wallet", 10, 100, serving=UNLINKED)),
        )
        await self.together(desk, {f"reserve {name}": reservation(desk, name) for name in CROWD})
        await self.together(
            desk,
            {
                "settle done2": settlement(desk, "done2"),
                "settle left2": settlement(desk, "left2", partial=True),
                "refund lost2": Refund(reservation_id="lost2", now=desk.clock()),
                "settle wallet2": settlement(desk, "wallet2", serving=UNLINKED),
            },
        )
        await self.step("sweep", lambda: sweep(desk))

    async def together(self, desk: Desk, orders: Mapping[str, reservations.Order[Any]]) -> None:
        """Steps that pile up while the writer is busy: they share a commit and its statements."""
        write = desk.services.db.write
        begun, go = threading.Event(), threading.Event()

        def busy(_: Connection) -> None:
            begun.set()
            go.wait()

        first = asyncio.create_task(write(busy))
        await asyncio.to_thread(begun.wait)
        steps = [
            asyncio.create_task(self.step(name, functools.partial(write, order)))
            for name, order in orders.items()
        ]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, *steps)

    async def withdraw(self, desk: Desk) -> None:
        """One withdrawal that arrives and one that the bank sends back."""
        for key in KEYS:
            await self.step(f"withdraw {key}", functools.partial(withdraw, desk, key))
        for _ in range(3):
            desk.clock.forward(timedelta(days=1))
            await payouts(desk).take_due_steps()


async def reserve(desk: Desk, name: str) -> None:
    run = desk.services.db.run
    await desk.books(lambda shop: shop.reserve(name, 5_000, run=run))


def reservation(desk: Desk, name: str) -> Reserve:
    return Reserve(
        reservation_id=name,
        account_id=CONSUMER,
        model=QWEN,
        amount=5_000,
        now=desk.clock(),
        run=desk.services.db.run,
    )


def settlement(
    desk: Desk, name: str, *, serving: Serving = LINKED, partial: bool = False
) -> Settle:
    return Settle(
        reservation_id=name,
        job_id=f"job-{name}",
        serving=serving,
        prompt_tokens=120,
        completion_tokens=380,
        price=QWEN_PRICE,
        policy=desk.services.policy,
        now=desk.clock(),
        partial=partial,
    )


def payouts(desk: Desk) -> PayoutDesk:
    assert desk.services.payouts is not None
    return desk.services.payouts


async def withdraw(desk: Desk, key: str) -> None:
    """To a good bank, or to one that has no such account."""
    last4 = {"paid": "4242", "failed": "1116"}[key]
    await desk.write(
        lambda c: c.execute(
            metadata.tables["payout_accounts"].update().values(destination_last4=last4)
        ).close()
    )
    reply = await desk.client.post(
        WITHDRAW,
        headers=desk.session(OWNER) | {"Idempotency-Key": key},
        json={"amount_usd": "2.00"},
    )
    assert reply.status_code in {200, 202}, reply.text


async def buy(desk: Desk) -> None:
    """Credit, paid for on the sandbox's page."""
    reply = await desk.client.post(
        CREATE,
        headers=desk.session(CONSUMER) | {"Idempotency-Key": "bought"},
        json={"amount_usd": "3.00"},
    )
    assert reply.status_code == 200, reply.text
    paid = await desk.client.post(reply.json()["url"], data={"choice": "pay"})
    # Paid before, there is nothing to pay any more.
    assert paid.status_code in {200, 404}, paid.text


async def sweep(desk: Desk) -> None:
    await desk.write(
        lambda c: wallet_sweep(
            c, address=WALLET, account_id=OWNER, machine_id=MACHINE, now=desk.clock()
        )
    )


async def prepare(run: Run) -> None:
    """What is there before anything can go wrong."""
    async with run.desk() as desk:
        for account in (OWNER, CONSUMER):
            await desk.user(account)
        await desk.books(lambda shop: shop.deposit(1_000_000))
        await desk.books(lambda shop: shop.earn(10_000_000, OWNER))
        link = (await desk.client.post(ONBOARD, headers=desk.session(OWNER))).json()["url"]
        await desk.client.post(link, data={"destination": "bank"})


async def live(run: Run) -> None:
    """The victim's life. It ends here only if it passed every failpoint."""
    async with run.desk() as desk:
        run.points.armed = True
        await run.trade(desk)
        await run.step("buy", lambda: buy(desk))
        await run.withdraw(desk)
        run.points.armed = False
    (run.directory / "passed").write_text(str(run.points.passed))


async def survive(run: Run) -> None:
    """The books are right at once, and everything can be finished, once."""
    async with run.desk() as desk:
        assert await desk.services.db.read(audit) == []
        done = run.acknowledged.read_text().splitlines() if run.acknowledged.exists() else []
        await desk.services.db.read(lambda c: kept(c, done))
        await recovered(desk)
        # A client that got no answer asks again, with the same key.
        for key in KEYS:
            await withdraw(desk, key)
        await buy(desk)
        for _ in range(6):
            desk.clock.forward(timedelta(days=1))
            await payouts(desk).take_due_steps()
        await sweep(desk)
        assert await desk.services.db.read(audit) == []
        await desk.services.db.read(lambda c: finished(c, run.directory / "bank"))


async def recovered(desk: Desk) -> None:
    for _ in range(100):
        await desk.services.db.recover(now=desk.clock())
        held = await desk.services.db.read(lambda c: books.balance_of(c, books.RESERVATIONS))
        if held.balance == 0:
            return
        # PostgreSQL has yet to notice that the victim's connection is gone.
        await asyncio.sleep(0.05)
    raise AssertionError("open reservations were not refunded")


def kept(connection: Connection, done: list[str]) -> None:
    """What was acknowledged is there."""
    states = {
        row.reservation_id: row.state
        for row in connection.execute(select(jobs.c.reservation_id, jobs.c.state))
    }
    wanted = {"done": "settled", "left": "partial", "lost": "refunded", "wallet": "settled"}
    wanted |= {f"{name}2": state for name, state in wanted.items()}
    for step in done:
        act, _, name = step.partition(" ")
        if act == "reserve":
            assert name in states, step
        elif act in {"settle", "refund"}:
            assert states[name] == wanted[name], step
    if "buy" in done:
        assert connection.execute(select(deposits.c.status)).scalar_one() == "completed"
    count = connection.execute(select(func.count()).select_from(withdrawals)).scalar_one()
    assert count >= sum(step.startswith("withdraw") for step in done)


def finished(connection: Connection, bank: Path) -> None:
    """One withdrawal a key; the bank and the books agree; nothing was paid or taken twice."""
    bought = connection.execute(select(deposits)).one()
    assert (bought.status, bought.credited) == ("completed", 3_000_000)
    rows = connection.execute(select(withdrawals)).all()
    assert sorted(row.status for row in rows) == ["failed", "paid"]
    transfers = {path.name for path in bank.glob("tr-*")}
    assert transfers == {f"tr-{row.id}" for row in rows}
    back = {path.name for path in bank.glob("rv-*")}
    assert back == {f"rv-{row.id}" for row in rows if row.status == "failed"}
    assert books.balance_of(connection, books.PAID_OUT).balance == 2_000_000
    assert books.balance_of(connection, books.WITHDRAWALS).balance == 0
    earned = connection.execute(
        select(func.coalesce(func.sum(jobs.c.payout), 0)).where(
            jobs.c.beneficiary.in_([OWNER, WALLET])
        )
    ).scalar_one()
    assert books.balance_of(connection, OWNER).balance == 8_000_000 + earned
    assert books.balance_of(connection, WALLET).balance == 0


class Ground:
    """Where runs take place: the same prepared ledger before each."""

    def __init__(self, directory: Path, url: str | None) -> None:
        self.directory = directory
        self._url = url
        self._template = directory / "template.sqlite3"

    @property
    def place(self) -> Path | str:
        return self._url or self.directory / "run" / "ledger.sqlite3"

    def prepare(self) -> None:
        self._clear()
        assert in_child(lambda: asyncio.run(prepare(self._run(Failpoints(-1))))) == 0
        if self._url is None:
            shutil.copy(str(self.place), self._template)
        else:
            self._copy_database(self._database, "template_of_runs")

    def reset(self) -> None:
        self._clear()
        if self._url is None:
            shutil.copy(self._template, str(self.place))
        else:
            self._copy_database("template_of_runs", self._database)

    @property
    def _database(self) -> str:
        return make_url(self._url or "").database or ""

    def _copy_database(self, source: str, target: str) -> None:
        url = make_url(self._url or "").set(drivername="postgresql", database="postgres")
        copied, made = sql.Identifier(source), sql.Identifier(target)
        with psycopg.connect(url.render_as_string(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(made))
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, copied))

    def _clear(self) -> None:
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        (self.directory / "run" / "bank").mkdir(parents=True)

    def _run(self, points: Failpoints) -> Run:
        return Run(self.directory / "run", self.place, points)

    def victim(self, fatal: int) -> int:
        """Live until a failpoint; minus the signal it died of, or 0 if it never got there."""

        def act() -> None:
            points = Failpoints(fatal)
            points.watch()
            asyncio.run(live(self._run(points)))

        return in_child(act)

    def survivor(self) -> int:
        return in_child(lambda: asyncio.run(survive(self._run(Failpoints(-1)))))


def in_child(act: Callable[[], None]) -> int:
    """Run something in a forked process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:  # noqa: BLE001 - told by the exit code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(directory: str, step: str, url: str | None = None) -> None:
    ground = Ground(Path(directory), url)
    ground.prepare()
    runs = fatal = 0
    while True:
        ground.reset()
        ended = ground.victim(fatal)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, f"the victim of failpoint {fatal} ended with {ended}"
        assert ground.survivor() == 0, f"the books were wrong after failpoint {fatal}"
        runs += 1
        fatal += int(step)
    assert ground.survivor() == 0, "the books were wrong after no failure"
    passed = int((ground.directory / "run" / "passed").read_text())
    print(json.dumps({"runs": runs, "failpoints": passed}))  # noqa: T201 - a program


if __name__ == "__main__":
    main(*sys.argv[1:])
