"""One file to hand to somebody who helps: what was found, and nothing secret."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from darkbloom_provider import paths
from darkbloom_provider.doctor.checkup import document
from darkbloom_provider.doctor.finding import Finding
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.doctor.secrets import Secrets

LOG_BYTES: Final = 256 * 1024
"""As much of the log's end is taken along."""


def contents(place: Place, findings: Sequence[Finding]) -> dict[str, str]:
    """Each file of the bundle by its name, secrets removed."""
    report = place.daemon()
    texts = {
        "doctor.json": json.dumps(document(findings), indent=2),
        "status.json": "" if report is None else report.model_dump_json(indent=2),
        "settings.toml": _settings(place),
        "provider.log": _end_of(place.home.log_file),
        "packages.txt": _packages(),
    }
    secrets = Secrets.of(place.home, place.environ)
    return {name: secrets.removed_from(text) for name, text in texts.items() if text}


def write(path: Path, texts: Mapping[str, str]) -> None:
    """Write the bundle, readable by its owner alone.

    Raises:
        OSError: The disk does not take it.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    path.touch(paths.PRIVATE_FILE)
    path.write_bytes(packed.getvalue())


def _settings(place: Place) -> str:
    for path in place.settings_files:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    return ""


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _packages() -> str:
    found = {f"{package.name}=={package.version}" for package in metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"
