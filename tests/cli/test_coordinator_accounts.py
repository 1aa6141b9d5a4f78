"""`darkbloom coordinator init|user|key|invite|credit`: as an operator types them, and twice."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.server import running_coordinator
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.errors import DarkbloomError, UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue

PASSWORD = "correct horse battery"
ADMIN = "boss@example.org"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - that is the point


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "state"


def run(data: Path, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(
        darkbloom, ["coordinator", *arguments, "--data", str(data)], input=stdin
    )


def json_of(data: Path, *arguments: str, stdin: str | None = None) -> Any:
    result = run(data, *arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def refused(result: Result) -> DarkbloomError:
    assert isinstance(result.exception, DarkbloomError), (result.output, result.exception)
    return result.exception


def test_init_makes_what_is_missing_and_leaves_what_is_there(data: Path) -> None:
    first = json_of(data, "init", "--admin", ADMIN, "--password-stdin", stdin=f"{PASSWORD}\n")
    key_file = Path(first["admin_key_file"])
    assert first["admin_key_made"]
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key, session_key = key_file.read_text(), (data / "session-key.pem").read_bytes()
    assert len(key) == 64

    again = json_of(data, "init")
    assert (again["admin_key_made"], again["admins"]) == (False, [ADMIN])
    assert json_of(data, "init", "--admin", ADMIN) == again
    assert (key_file.read_text(), (data / "session-key.pem").read_bytes()) == (key, session_key)
    [user] = json_of(data, "user", "list")["users"]
    assert (user["email"], user["admin"]) == (ADMIN, True)
    shown = run(data, "init")
    assert key not in shown.output
    assert "coordinator serve" in shown.output


def test_init_without_a_terminal_says_how_to_give_the_password(data: Path) -> None:
    error = refused(run(data, "init", "--admin", ADMIN))
    assert "--password-stdin" in str(error.next_step)
    weak = refused(run(data, "init", "--admin", ADMIN, "--password-stdin", stdin="short\n"))
    assert "10" in weak.what
    assert "short" not in str(weak.lines()).replace("too short", "")


def test_a_password_for_nobody_is_not_swallowed(data: Path) -> None:
    assert isinstance(refused(run(data, "init", "--password-stdin", stdin="x\n")), UsageError)
    json_of(data, "init", "--admin", ADMIN, "--password-stdin", stdin=f"{PASSWORD}\n")
    again = run(data, "init", "--admin", ADMIN, "--password-stdin", stdin="another long one\n")
    assert "user password" in str(refused(again).next_step)


async def opened(settings: Settings) -> None:
    async with running_coordinator(settings, Catalogue.builtin()):
        pass


async def test_other_machines_are_let_in_only_where_an_administrator_can_sign_in(
    data: Path,
) -> None:
    settings = Settings(data, host=EVERYWHERE, port=0, admin_key=Secret("k"))
    with pytest.raises(UsageError, match="no administrator who can sign in") as caught:
        await opened(settings)
    assert "coordinator init --admin" in str(caught.value.next_step)


def test_what_init_made_is_enough_to_listen_for_other_machines(data: Path) -> None:
    bare = refused(run(data, "serve", "--host", EVERYWHERE))
    assert "coordinator init --admin" in str(bare.next_step)
    run(data, "init")
    # The key is there now, the administrator is not.
    unmanned = refused(run(data, "serve", "--host", EVERYWHERE, "--port", "0"))
    assert "no administrator" in str(unmanned)
    json_of(data, "init", "--admin", ADMIN, "--password-stdin", stdin=f"{PASSWORD}\n")

    key = Secret((data / "admin-key").read_text())
    asyncio.run(opened(Settings(data, host=EVERYWHERE, port=0, admin_key=key)))


def test_a_short_admin_key_is_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret")
    error = refused(run(data, "serve", "--admin-key-file", str(file)))
    assert "openssl rand" in str(error.next_step)
    assert "secret" not in str(error.lines())


async def test_a_user_signs_in_with_the_password_the_operator_set(data: Path) -> None:

    async with (
        running_coordinator(Settings(data, port=0), Catalogue.builtin()) as coordinator,
        httpx.AsyncClient(base_url=coordinator.base_url) as http,
    ):

        async def operator(*arguments: str, stdin: str | None = None) -> Any:
            return await asyncio.to_thread(json_of, data, *arguments, stdin=stdin)

        async def sign_in(password: str) -> httpx.Response:
            body = {"email": "ann@example.org", "password": password}
            return await http.post("/v1/auth/sign-in", json=body)

        made = await operator("user", "add", "ann@example.org")
        assert made["new"]
        assert not (await operator("user", "add", "ANN@example.org"))["new"]
        assert (await sign_in(PASSWORD)).status_code == 401
        await operator("user", "password", "ann@example.org", "--password-stdin", stdin=PASSWORD)
        signed_in = await sign_in(PASSWORD)
        assert signed_in.json()["account_id"] == made["account_id"]
        await operator("user", "sign-out", "ann@example.org")
        headers = {"Authorization": f"Bearer {signed_in.json()['token']}"}
        assert (await http.get("/v1/auth/session", headers=headers)).status_code == 401


def test_administrators_are_made_and_unmade(data: Path) -> None:
    json_of(data, "user", "add", "ann@example.org")
    assert "user add" in str(refused(run(data, "user", "admin", "nobody@example.org")).next_step)
    for arguments, admin in (((), True), (("--remove",), False)):
        json_of(data, "user", "admin", "ann@example.org", *arguments)
        [user] = json_of(data, "user", "list")["users"]
        assert user["admin"] is admin


def test_keys_are_made_listed_and_revoked(data: Path) -> None:
    key = json_of(data, "key", "--email", "ann@example.org", "--name", "laptop")
    assert key["api_key"].startswith("eigeninference-")
    twice = refused(run(data, "key", "--email", "ann@example.org", "--name", "laptop"))
    assert "already" in twice.what
    [listed] = json_of(data, "key", "list", "--email", "ann@example.org")["keys"]
    assert (listed["id"], listed["name"]) == (key["id"], "laptop")
    assert key["api_key"] not in run(data, "key", "list", "--email", "ann@example.org").output
    for revoked in (True, False):
        done = json_of(data, "key", "revoke", key["id"], "--email", "ann@example.org")
        assert done["revoked"] is revoked
    assert run(data, "key").exit_code == 2


def test_credit_with_a_reference_is_given_once(data: Path) -> None:
    json_of(data, "user", "add", "ann@example.org")
    for new in (True, False):
        given = json_of(data, "credit", "ann@example.org", "2.5", "--reference", "may")
        assert (given["new"], given["balance_micro_usd"]) == (new, 2_500_000)
    assert json_of(data, "credit", "ann@example.org", "1")["balance_micro_usd"] == 3_500_000
    assert json_of(data, "credit", "ann@example.org", "1")["balance_micro_usd"] == 4_500_000
    assert "user add" in str(refused(run(data, "credit", "ben@example.org", "1")).next_step)
    assert run(data, "credit", "ann@example.org", "lots").exit_code == 2


def test_invites_are_made_listed_and_revoked(data: Path) -> None:
    arguments = ("invite", "create", "--amount", "5", "--code", "spring", "--uses", "3")
    for new in (True, False):
        made = json_of(data, *arguments)
        assert (made["new"], made["code"], made["amount_micro_usd"]) == (new, "SPRING", 5_000_000)
    assert "taken" in refused(run(data, *arguments[:-1], "4")).what
    drawn = json_of(data, "invite", "create", "--days", "30")
    assert drawn["code"].startswith("INV-")
    assert drawn["expires_at"] is not None
    assert len(json_of(data, "invite", "list")["invites"]) == 2
    assert not json_of(data, "invite", "revoke", "spring")["active"]
    assert "revoked" in run(data, "invite", "list").output
    assert "invite list" in str(refused(run(data, "invite", "revoke", "nothing")).next_step)


def test_a_code_that_is_not_known_makes_nobody_and_says_where_it_is_shown(data: Path) -> None:
    error = refused(run(data, "approve", "ABCD-EFGH", "--email", "owner@example.org"))
    assert "not known" in error.what
    assert "darkbloom login" in str(error.next_step)
    assert json_of(data, "user", "list")["users"] == []


@pytest.mark.parametrize("arguments", [("user", "list"), ("invite", "list")])
def test_an_empty_list_says_what_to_type(data: Path, arguments: tuple[str, ...]) -> None:
    assert "Next: darkbloom coordinator" in run(data, *arguments).output


@pytest.mark.parametrize(
    "arguments",
    [("user", "add", "no address"), ("key", "--email", "x"), ("approve", "X", "--email", "y")],
)
def test_an_address_that_is_none_is_refused(data: Path, arguments: tuple[str, ...]) -> None:
    assert "e-mail address" in refused(run(data, *arguments)).what
