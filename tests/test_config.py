from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider import config
from darkbloom_provider.errors import ConfigError, ExitCode

PATH = Path("provider.toml")

GOOD = """
[provider]
name = "studio"
memory_reserve_gb = 8

[backend]
model = "a"
enabled_models = ["b", "a"]

[coordinator]
url = "http://127.0.0.1:8080"
"""


def test_absent_settings_take_the_documented_defaults() -> None:
    settings = config.Config()
    assert settings.coordinator.url == "wss://api.darkbloom.dev/ws/provider"
    assert settings.coordinator.base_url == "https://api.darkbloom.dev"
    assert settings.provider.memory_reserve_gb == 4
    assert settings.backend.idle_timeout_mins == 60
    assert settings.backend.preload_models == []
    assert settings.backend.prompt_cache_gb == 2
    assert settings.attestation.posture == "measured"


def test_a_file_is_read_and_any_spelling_of_the_address_is_understood() -> None:
    settings = config.parse(GOOD, PATH)
    assert settings.coordinator.url == "ws://127.0.0.1:8080/ws/provider"
    assert settings.coordinator.is_loopback
    assert settings.backend.models == ("a", "b")


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('[provider]\nname = "x"\nmemory_reserve_gb = -1\n', 3, "memory_reserve_gb"),
        ('[backend]\nidle_timeout_mins = "sixty"\n', 2, "idle_timeout_mins"),
        ("[backend]\nprompt_cache_gb = -1\n", 2, "prompt_cache_gb"),
        ("[backend]\nprompt_cache_gb = inf\n", 2, "prompt_cache_gb"),
        ("[provider]\nmemory_reserve_gb = nan\n", 2, "memory_reserve_gb"),
        ('[backend]\npreload_models = "a"\n', 2, "preload_models"),
        ("# note\n\n[coordinator]\nurl = 'ftp://x'\n", 4, "coordinator.url"),
        ('[provider]\nnmae = "typo"\n', 2, "nmae"),
        ("[shedule]\nenabled = true\n", 1, "shedule"),
        ('[attestation]\nposture = "generous"\n', 2, "posture"),
        ('coordinator.url = "nowhere"\n', 1, "coordinator.url"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, PATH)
    assert f"provider.toml, line {line}:" in caught.value.what
    assert word in caught.value.what
    assert caught.value.exit_code is ExitCode.USAGE


def test_broken_toml_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse('[provider]\nname = "unclosed\n', PATH)
    assert "line 2" in str(caught.value)


def test_a_development_posture_is_refused_off_loopback() -> None:
    text = '[attestation]\nposture = "development"\n'
    with pytest.raises(ConfigError, match="refused"):
        config.parse(text, PATH)
    local = text + '[coordinator]\nurl = "ws://[::1]:8080/ws/provider"\n'
    assert config.parse(local, PATH).attestation.posture == "development"


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1.evil.example/ws/provider", "wss://localhost@evil.example"]
)
def test_a_host_that_only_looks_like_loopback_is_not(url: str) -> None:
    assert not config.CoordinatorSection(url=url).is_loopback


def test_another_programs_file_may_hold_keys_we_do_not_know() -> None:
    text = '[provider]\nname = "x"\nfuture = 1\n[telemetry]\non = true\n'
    assert config.parse(text, PATH, foreign=True).provider.name == "x"
    with pytest.raises(ConfigError):
        config.parse(text, PATH)


def test_the_first_existing_file_wins_and_a_named_one_must_exist(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert config.load(environ) == config.Config()
    theirs = tmp_path / "eigeninference" / "provider.toml"
    theirs.parent.mkdir()
    theirs.write_text('[provider]\nname = "theirs"\nunknown = 1\n')
    assert config.load(environ).provider.name == "theirs"
    ours = tmp_path / "darkbloom" / "provider.toml"
    ours.parent.mkdir()
    ours.write_text('[provider]\nname = "ours"\n')
    assert config.load(environ).provider.name == "ours"
    with pytest.raises(ConfigError, match="does not exist"):
        config.load({"DARKBLOOM_CONFIG": str(tmp_path / "absent.toml")})


def test_an_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load({}, tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load({}, binary)


@given(st.text(max_size=200))
def test_any_text_is_settings_or_a_config_error(text: str) -> None:
    try:
        config.parse(text, PATH)
    except ConfigError as error:
        assert error.next_step  # noqa: PT017 — most texts are wrong, a few are settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://c.example", "wss://c.example/ws/provider"),
        ("WS://c.example:1/ws/provider/", "ws://c.example:1/ws/provider"),
        ("https://c.example/base", "wss://c.example/base/ws/provider"),
    ],
)
def test_addresses_come_out_in_one_form(url: str, expected: str) -> None:
    assert config.websocket_url(url) == expected
    assert config.websocket_url(config.http_base(url)) == expected
