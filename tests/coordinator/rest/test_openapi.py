"""The OpenAPI document tells the truth: schemathesis asks for all it allows and forbids."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.credentials import person
from support.network import network

# Ends the session that all other questions are asked with; `test_sign_in` is about it.
NOT_ASKED_FOR = ("--exclude-path", "/v1/auth/sign-out")
# A body of the right shape may still name an unknown code, or cost more than there is.
NOT_CHECKED = ("--exclude-checks", "positive_data_acceptance")


async def ask_everything(directory: Path, *effort: str) -> None:
    """Run schemathesis over a whole coordinator as somebody who may call everything."""
    async with network(directory / "state", admin_key="the-operators-own-key") as net:
        admin = await person(net, "admin", admin=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"{net.coordinator.base_url}/openapi.json",
            *("--header", f"Authorization: Bearer {admin.session()}"),
            *("--seed", "1", "--generation-deterministic", "--no-color", "--no-shrink"),
            *NOT_ASKED_FOR,
            *NOT_CHECKED,
            *effort,
            cwd=directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        document = (await net.http.get("/openapi.json")).json()
    operations = sum(len(methods) for methods in document["paths"].values())
    # Without the one above, and without the document itself, which schemathesis leaves out.
    assert f"Tested: {operations - 2}" in output, output


async def test_the_interface_is_as_its_document_says(tmp_path: Path) -> None:
    await ask_everything(tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "2")


@pytest.mark.chaos
async def test_the_interface_is_as_its_document_says_at_length(tmp_path: Path) -> None:
    await ask_everything(tmp_path, "--phases", "coverage,fuzzing,stateful", "--max-examples", "200")


async def test_the_document_says_who_may_call_and_what_comes_back(tmp_path: Path) -> None:
    async with network(tmp_path) as net, httpx.AsyncClient() as http:
        document: Any = (await http.get(f"{net.coordinator.base_url}/openapi.json")).json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"].startswith("Who may call it: "), name
        assert ("401" in operation["responses"]) >= ("security" in operation), name
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)
    assert "security" not in operations["GET", "/health"]
    assert operations["GET", "/v1/payments/balance"]["security"] == [{"credential": []}]
    for path in ("chat/completions", "completions", "messages", "responses"):
        asked = operations["POST", f"/v1/{path}"]
        assert "429" in asked["responses"], path
        assert len(asked["requestBody"]["content"]) == 2, path
    assert operations["POST", "/v1/messages"]["security"] == [
        {"credential": []},
        {"key_header": []},
    ]
