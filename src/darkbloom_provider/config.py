"""Settings of the provider: one TOML file, every key checked, every mistake named by its line.

A wrong setting never means "serve": it raises `ConfigError` and nothing starts. Files of the
network's existing client are read too; keys of theirs that we do not know are left alone, while an
unknown key in our own file is a mistake (most likely a typo).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from darkbloom_provider import paths
from darkbloom_provider.errors import ConfigError

DEFAULT_COORDINATOR = "wss://api.darkbloom.dev/ws/provider"
WEBSOCKET_PATH = "/ws/provider"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ProviderSection(_Section):
    """`[provider]`: this machine."""

    name: str | None = None
    memory_reserve_gb: Annotated[float, Field(ge=0)] = 4
    """GB of memory that stay free for the owner."""
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = None
    """Ceiling for the engine in GB; absent means total memory less the reserve."""
    auto_update: bool = True


class BackendSection(_Section):
    """`[backend]`: which models are served and how."""

    model: str | None = None
    enabled_models: list[str] = []
    idle_timeout_mins: Annotated[int, Field(ge=0)] = 60
    """Minutes without a request after which a model is unloaded; 0 means never."""
    max_model_slots: Annotated[int, Field(ge=1)] = 3
    continuous_batching: bool = True
    preload_models: list[str] = []
    """The served models that are loaded at the start, in order; the others are loaded when they are
    asked for. Empty means: as many of the served ones as fit."""
    prompt_cache_gb: Annotated[float, Field(ge=0)] = 2
    """Most GB of memory for prompts that have been computed before; they give way to any request.
    0 computes every prompt anew."""

    @property
    def models(self) -> tuple[str, ...]:
        """The ids to serve, in order, each once. Empty means: every model on this machine."""
        named = ([self.model] if self.model else []) + self.enabled_models
        return tuple(dict.fromkeys(named))


class CoordinatorSection(_Section):
    """`[coordinator]`: whom this machine works for."""

    url: str = DEFAULT_COORDINATOR
    heartbeat_interval_secs: Annotated[float, Field(ge=1, le=60)] = 5

    @field_validator("url")
    @classmethod
    def _websocket_url(cls, url: str) -> str:
        return websocket_url(url)

    @property
    def base_url(self) -> str:
        """The HTTP base of the coordinator, without a trailing slash (`rest.md` section 1.1)."""
        return http_base(self.url)

    @property
    def is_loopback(self) -> bool:
        """Whether the coordinator runs on this very machine."""
        return host_of(self.url) in LOOPBACK_HOSTS


class AttestationSection(_Section):
    """`[attestation]`: what is said about this machine."""

    posture: Literal["measured", "development"] = "measured"
    """`development` claims facts that do not exist here; refused unless on loopback."""


class Config(_Section):
    """The whole file. Absent sections take their defaults."""

    provider: ProviderSection = ProviderSection()
    backend: BackendSection = BackendSection()
    coordinator: CoordinatorSection = CoordinatorSection()
    attestation: AttestationSection = AttestationSection()

    def checked(self) -> Config:
        """Self, if the sections agree with each other.

        Raises:
            ConfigError: `posture = "development"` with a coordinator that is not on loopback.
        """
        if self.attestation.posture == "development" and not self.coordinator.is_loopback:
            raise ConfigError(
                'posture = "development" is refused for a coordinator on another machine',
                why=f"{self.coordinator.url} is not loopback, and the claims would not be true",
                next_step='set [attestation] posture = "measured"',
            )
        return self


def websocket_url(url: str) -> str:
    """The websocket address for any spelling of a coordinator's address.

    >>> websocket_url("http://127.0.0.1:8080")
    'ws://127.0.0.1:8080/ws/provider'

    Raises:
        ValueError: The scheme is not http(s) or ws(s), or the host is missing.
    """
    match = re.fullmatch(r"(?i)(wss?|https?)://([^/\s?#]+)(/[^\s?#]*)?", url.strip())
    if match is None:
        raise ValueError("must look like wss://host/ws/provider or https://host")
    scheme, authority, path = match.groups()
    secure = scheme.lower() in {"wss", "https"}
    path = (path or "").rstrip("/").removesuffix(WEBSOCKET_PATH)
    return f"{'wss' if secure else 'ws'}://{authority}{path}{WEBSOCKET_PATH}"


def http_base(url: str) -> str:
    """The HTTP base for any spelling of a coordinator's address, without a trailing slash.

    >>> http_base("wss://api.darkbloom.dev/ws/provider")
    'https://api.darkbloom.dev'
    """
    return "http" + websocket_url(url).removeprefix("ws").removesuffix(WEBSOCKET_PATH)


def host_of(url: str) -> str:
    """The host of a coordinator's address, lower case, without port or brackets."""
    authority = websocket_url(url).split("/")[2].rpartition("@")[2]
    match = re.fullmatch(r"\[([^\]]+)\](?::\d+)?|([^:]+)(?::\d+)?", authority)
    return "" if match is None else (match.group(1) or match.group(2)).lower()


def load(environ: Mapping[str, str], path: Path | None = None) -> Config:
    """Read the settings from `path`, else from the first file that exists, else the defaults.

    Raises:
        ConfigError: The file is unreadable, not TOML, or holds a wrong value. The message names
            the file and the line.
    """
    candidates = [path] if path is not None else paths.config_candidates(environ)
    for candidate in candidates:
        try:
            text = candidate.read_text(encoding="utf-8")
        except FileNotFoundError:
            if path is not None or paths.CONFIG_VARIABLE in environ:
                raise ConfigError(
                    f"The config file {candidate} does not exist",
                    next_step="check the path, or leave it out to use the defaults",
                ) from None
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The config file {candidate} cannot be read",
                why=_reason(error),
                next_step=f"mend or remove {candidate}",
            ) from error
        return parse(text, candidate, foreign="eigeninference" in candidate.parts)
    return Config()


def parse(text: str, path: Path, *, foreign: bool = False) -> Config:
    """Read settings from TOML text.

    Args:
        text: The file's content.
        path: Its name, for messages.
        foreign: Another program's file: keys that we do not know are ignored.

    Raises:
        ConfigError: As for `load`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not valid TOML", why=str(error), next_step=f"mend {path}; nothing started"
        ) from error
    if foreign:
        document = _known_keys(document)
    try:
        return Config.model_validate(document).checked()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = [str(part) for part in first["loc"]]
        line = line_of(text, location)
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(
            f"{where}: {'.'.join(location)} is wrong",
            why=_explain(first["type"], first["msg"], location),
            next_step=f"mend {path}; nothing started",
        ) from error


def line_of(text: str, location: Sequence[str]) -> int | None:
    """The 1-based line of TOML `text` that sets the key at `location`, or None if not found."""
    section: list[str] = []
    header_line: int | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if header := re.match(r"\[\[?\s*([^\]]+?)\s*\]\]?", line):
            section = [part.strip().strip("\"'") for part in header.group(1).split(".")]
            if section == list(location[: len(section)]) and header_line is None:
                header_line = number
        elif key := re.match(r"([\w.\"'-]+)\s*=", line):
            here = [*section, *(part.strip("\"'") for part in key.group(1).split("."))]
            if here == list(location[: len(here)]):
                return number
    return header_line


def _known_keys(document: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        section = document.get(name)
        kind = field.annotation
        if isinstance(section, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            known[name] = {k: v for k, v in section.items() if k in kind.model_fields}
    return known


def _explain(kind: str, message: str, location: Sequence[str]) -> str:
    if kind == "extra_forbidden":
        return f"there is no setting called {location[-1]!r} here"
    return message.removeprefix("Value error, ")


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
