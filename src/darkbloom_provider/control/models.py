"""What travels over the local socket. Both ends use these models; money is integer micro-USD."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

HOST = "local-darkbloomd"
"""The only `Host` the daemon answers to: no browser can be made to send it."""
VERSION_HEADER = "Darkbloom-Version"

STATUS_PATH = "/v1/status"
DRAIN_PATH = "/v1/drain"
RELOAD_ACCOUNT_PATH = "/v1/reload/account"
RELOAD_MODELS_PATH = "/v1/reload/models"

DEFAULT_DRAIN_SECONDS = 120.0
"""How long running requests may take to finish after a stop was asked for."""
MAX_DRAIN_SECONDS = 24 * 3600.0

Phase = Literal["starting", "loading", "serving", "draining", "stopped"]
ModelState = Literal["waiting", "loading", "ready", "idle", "failed"]
"""`idle` is not in memory, to be loaded again by the next request for it."""
LinkPhase = Literal[
    "not started", "connecting", "registered", "waiting", "refused", "draining", "closed"
]


class _Model(BaseModel):
    # Ignoring unknown fields lets a command line and a daemon of different versions still talk.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(_Model):
    """What went wrong, and what the owner can do about it."""

    what: str
    why: str | None = None
    next_step: str | None = None


class CoordinatorStatus(_Model):
    """The session with the coordinator."""

    url: str
    phase: LinkPhase
    since: AwareDatetime | None = None
    """When the present phase began."""
    registered_at: AwareDatetime | None = None
    attempts: int = 0
    """Failures in a row since the connection was last steady."""
    retry_at: AwareDatetime | None = None
    last_problem: Problem | None = None


class LocalStatus(_Model):
    """The endpoint for programs on this machine, which is served instead of a coordinator."""

    url: str
    """Its base, without a trailing slash."""
    key_file: str
    """What holds the key that callers must bring."""


class AccountStatus(_Model):
    """Whom the machine's earnings go to."""

    linked: bool
    account_id: str | None = None
    wallet_address: str | None = None
    """Where earnings are kept while no account is linked."""


class ModelStatus(_Model):
    """One model that this machine serves, or wants to."""

    id: str
    state: ModelState
    detail: str | None = None
    """The step of a load under way, or why the model failed."""
    in_flight: int = 0


class JobCounts(_Model):
    """Requests and tokens since the daemon started."""

    in_flight: int = 0
    served: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ignored_parameters: dict[str, int] = {}
    """How often requests had a parameter that nobody knows, by its name."""


class JournalStatus(_Model):
    """The local record of completed jobs, over all runs. An estimate, never the server's figure."""

    jobs: int = 0
    estimate_micro_usd: int = 0
    unwritten: int = 0
    """Completed jobs that could not be written yet; they are tried again."""
    problem: Problem | None = None


class PostureStatus(_Model):
    """What is said to the coordinator about this machine."""

    kind: Literal["measured", "development"]
    facts: dict[str, bool | None] = {}
    """What is said of each; None means it could not be found out, so nothing is said."""
    claimed: tuple[str, ...] = ()
    """Facts that are claimed without being true here (`development` only)."""


class PrivacyStatus(_Model):
    """One privacy capability as it was registered, and what it was read from."""

    holds: bool
    evidence: str


class StatusReport(_Model):
    """Everything `darkbloom status` shows."""

    version: str
    pid: int
    phase: Phase
    now: AwareDatetime
    started_at: AwareDatetime
    coordinator: CoordinatorStatus
    account: AccountStatus
    models: tuple[ModelStatus, ...]
    jobs: JobCounts
    journal: JournalStatus
    posture: PostureStatus
    privacy: dict[str, PrivacyStatus] = {}
    """The privacy capabilities of the last registration, by their names on the wire."""
    warnings: tuple[str, ...] = ()
    """Things the owner should know that stop nothing."""
    local: LocalStatus | None = None
    """If set, nothing of coordinator, account, journal and posture is in use."""

    @property
    def uptime(self) -> dt.timedelta:
        """How long the daemon has been running."""
        return self.now - self.started_at


class DrainRequest(_Model):
    """Stop: finish what runs, accept nothing new, then exit."""

    deadline_s: float = Field(default=DEFAULT_DRAIN_SECONDS, ge=0, le=MAX_DRAIN_SECONDS)
    """Seconds until running requests are cut; 0 cuts them at once."""


class DrainReply(_Model):
    """The daemon has begun to stop."""

    pid: int
    in_flight: int


class AccountReload(_Model):
    """The daemon has looked anew for the token of the account it earns for."""

    coordinator: str | None = None
    """The websocket address it works for; None if it serves this machine only."""
    linked: bool = False
    changed: bool = False
    """The token is another one than before: it registers again, once no request runs."""
    in_flight: int = 0
    """Requests that the registration waits for."""


class ModelsReload(_Model):
    """The daemon has looked anew for the models on this machine."""

    models: tuple[str, ...] = ()
    """Those it serves from now on; new ones once they are loaded."""
    changed: bool = False
    left_out: tuple[str, ...] = ()
    """Why others are not served."""


class Refusal(_Model):
    """The body of every answer that is not a success."""

    error: str
    next_step: str | None = None
