"""`darkbloom demo`: the first earned money, and nothing left behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from darkbloom_provider.models.bundled import SMOLLM2_ID
from support.processes import darkbloom, running, until

pytestmark = pytest.mark.model


@pytest.fixture
def home(home_root: Path, smollm2: Path) -> Path:
    """A user's home in which the demo has already imported its model."""
    (home_root / "models").mkdir(parents=True)
    (home_root / "models" / SMOLLM2_ID).symlink_to(smollm2, target_is_directory=True)
    return home_root


def left_behind(home: Path) -> list[Path]:
    kept = {home / "models", home / "user", home / "tmp", home / "output"}
    return [*(home / "tmp").iterdir(), *(set(home.iterdir()) - kept)]


def test_the_demo_earns_for_three_requests_and_leaves_nothing(home: Path) -> None:
    demo = darkbloom("demo", home=home, timeout=110)
    assert demo.returncode == 0, demo.stderr
    assert "The capital of France is Paris." in demo.stdout
    _, _, printed = demo.stdout.partition("$ darkbloom earnings\n")
    block, _, closing = printed.partition("\n\nIn ")
    lines = block.splitlines()
    assert lines[:3] == ["Darkbloom Earnings", "", "Coordinator: online (1 providers connected)"]
    assert lines[3:5] == ["", "Earnings:"]
    assert re.fullmatch(r"  Balance:       \$0\.0000\d\d", lines[5])
    assert lines[6] == lines[5].replace("Balance:     ", "Total earned:")
    assert lines[7:10] == ["  Jobs served:   3", "", "Recent payouts:"]
    amounts = [re.fullmatch(rf"  \$0\.(\d{{6}})  {SMOLLM2_ID}", line) for line in lines[10:13]]
    assert sum(int(match[1]) for match in amounts if match) == int(lines[5][-6:])
    assert len(closing.strip().splitlines()) == 3
    assert left_behind(home) == []


async def test_a_kept_demo_answers_its_own_curl_line_until_ctrl_c(home: Path) -> None:
    with running("demo", "demo", "--keep", home=home) as demo:
        await until(lambda: "darkbloom status" in demo.output, "the demo to stay up", of=demo)
        (url,) = set(re.findall(r"curl -N (\S+)", demo.output))
        key = re.findall(r"eigeninference-[0-9a-f]{64}", demo.output)[0]
        async with httpx.AsyncClient(timeout=30) as http:
            reply = await http.post(
                url,
                headers={"Authorization": f"Bearer {key}"},
                json={
                    "model": SMOLLM2_ID,
                    "messages": [{"role": "user", "content": "Hello!"}],
                    "max_tokens": 4,
                },
            )
        assert reply.status_code == 200
        children = psutil.Process(demo.pid).children()
        assert children == []
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0
    assert left_behind(home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stopping_the_demo_half_way_leaves_nothing(
    home: Path, number: signal.Signals
) -> None:
    with running("demo", "demo", home=home) as demo:
        await until(lambda: "Asked, streamed" in demo.output, "the first question", of=demo)
        demo.signal(number)
        assert await demo.ended() == 130
        assert "Traceback" not in demo.output
    assert left_behind(home) == []
