from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from darkbloom_provider.host import identity
from darkbloom_provider.host.identity import IdentityError, address_of, machine_id, wallet_address
from darkbloom_provider.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_the_address_has_the_published_check_value() -> None:
    assert address_of("1".rjust(64, "0")) == "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417"


def test_a_wallet_is_made_once_and_kept_private(home: Home) -> None:
    first = wallet_address(home)
    assert wallet_address(home) == first
    key = home.wallet_key.read_text()
    assert len(key) == 64
    assert address_of(key) == first
    assert home.wallet_key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.root.iterdir()] == ["wallet_key"]


def test_the_wallet_of_the_networks_own_client_is_taken_as_it_is(home: Home) -> None:
    home.root.mkdir()
    home.wallet_key.write_text("1".rjust(64, "0"))
    assert wallet_address(home) == "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417"


def test_a_machine_id_is_32_hex_digits_and_stays(home: Home) -> None:
    first = machine_id(home, lambda count: bytes(range(count)))
    assert first == "000102030405060708090a0b0c0d0e0f"
    assert machine_id(home) == first
    assert home.machine_id.stat().st_mode & 0o777 == 0o600


def test_a_secret_that_others_could_read_is_closed_to_them(home: Home) -> None:
    wallet_address(home)
    home.wallet_key.chmod(0o644)
    wallet_address(home)
    assert home.wallet_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage", [b"", b"0" * 63, b"0" * 65, b"G" * 64, b"A" * 64, b"\xff" * 64, b"0" * 100_000]
)
def test_a_damaged_wallet_is_an_error_and_never_replaced(home: Home, damage: bytes) -> None:
    home.root.mkdir()
    home.wallet_key.write_bytes(damage)
    with pytest.raises(IdentityError, match="damaged") as caught:
        wallet_address(home)
    assert caught.value.next_step is not None
    assert home.wallet_key.read_bytes() == damage
    assert damage.decode(errors="replace") not in "".join(caught.value.lines()) or not damage


def test_a_home_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="cannot be used"):
        machine_id(Home(tmp_path / "file"))


def test_a_creator_that_comes_second_takes_the_first_ones_identity(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beaten(count: int) -> bytes:
        # Another process creates the file between our look and our attempt.
        home.machine_id.parent.mkdir(exist_ok=True)
        home.machine_id.write_text("f" * 32)
        return bytes(count)

    assert machine_id(home, beaten) == "f" * 32


def test_racing_threads_agree(home: Home) -> None:
    counter = itertools.count(1)
    seen: set[str] = set()
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        seen.add(machine_id(home, lambda count: next(counter).to_bytes(count, "big")))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1


def test_racing_processes_agree(home: Home) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from darkbloom_provider.host.identity import wallet_address\n"
        "from darkbloom_provider.paths import Home\n"
        "sys.stdin.readline(); print(wallet_address(Home(Path(sys.argv[1]))))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(home.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    addresses = {process.communicate()[0].strip() for process in processes}
    assert len(addresses) == 1
    assert addresses == {identity.wallet_address(home)}
