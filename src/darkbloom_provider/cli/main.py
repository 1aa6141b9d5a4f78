"""The `darkbloom` command. Commands are imported when called, so that `--help` stays quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from darkbloom_provider import __version__
from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.errors import DarkbloomError

COMMANDS = {
    "benchmark": "How fast a model answers on this machine, and how fast it could.",
    "coordinator": "Run a whole network on this machine.",
    "demo": "From nothing to the first earned money, on this machine alone.",
    "doctor": "What is wrong on this machine, and what to type next.",
    "earnings": "What this machine has earned.",
    "login": "Link this machine to your account.",
    "logout": "Unlink this machine.",
    "models": "The models on this machine.",
    "runtime": "The hashes of what the provider is made of.",
    "serve": "Run the provider in this terminal.",
    "start": "Run the provider in the background, now and at every login.",
    "status": "What the running provider does now.",
    "stop": "Stop the background provider.",
}
"""Name and one line of each command; `cli/<name>.py` holds it as `command`."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All command names."""
        return sorted(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The command called `name`, imported now."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"darkbloom_provider.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="darkbloom")
@click.option("-v", "--verbose", is_flag=True, help="Show debug lines.")
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Settings file to use instead of ~/.config/darkbloom/provider.toml.",
)
@click.pass_context
def darkbloom(ctx: click.Context, *, verbose: bool, config_path: Path | None) -> None:
    """Earn with an idle Mac: serve LLM requests and keep honest books of every token.

    Try `darkbloom demo` first: it needs nothing but this machine.
    """
    ctx.obj = Invocation(verbose=verbose, config_path=config_path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    try:
        code = darkbloom.main(args=arguments, prog_name="darkbloom", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except DarkbloomError as error:
        for line in error.lines():
            click.echo(line, err=True)
        code = int(error.exit_code)
    except BrokenPipeError:
        # The reader (`| head`) has gone. Keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
