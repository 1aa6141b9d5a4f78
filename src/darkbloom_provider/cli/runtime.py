"""`darkbloom runtime`: what the provider is made of."""

from __future__ import annotations

import json

import click

from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.host import runtime


@click.group("runtime")
def command() -> None:
    """The interpreter and the libraries that the provider runs on."""


@command.command("hash")
@json_option
@pass_invocation
def hash_runtime(invocation: Invocation, *, as_json: bool) -> None:
    """Print the hashes that a coordinator's operator would list.

    They change with every update of Python, of this program and of its libraries.
    """
    try:
        found = runtime.measure()
    except OSError as error:
        raise DarkbloomError(
            "The runtime cannot be hashed",
            why=f"{error.filename}: {error.strerror}",
            next_step="install this program again",
        ) from None
    if as_json:
        document = {
            "python_hash": found.python,
            "runtime_hash": found.runtime,
            "files": found.files,
        }
        click.echo(json.dumps(document))
        return
    invocation.out.print(f"python_hash   {found.python}")
    invocation.out.print(f"runtime_hash  {found.runtime}")
    invocation.err.print(f"Over {found.files} files. There are no template and no binary hashes.")
