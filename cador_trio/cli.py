"""The command `cador-trio`: arguments, exit codes, and what a terminal is told. Everything else is elsewhere.

Subcommands import what they need when they run, so that `cador-trio serve` never pays for the demo's libraries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import structlog
import trio

from cador_trio import __version__
from cador_trio.errors import CadorError, SettingsError
from cador_trio.settings import load_settings, read_variables, unknown_variables

EXIT_UNEXPECTED: Final = 1
EXIT_SETTINGS: Final = 2

_env_file = click.option(
    "--env-file", type=click.Path(path_type=Path), help="File of NAME=value lines; the environment wins over it."
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cador-trio")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a bare Earth-observation algorithm container into a dependable service.

    Without a command it serves, as `cador-trio serve` does. Settings come from environment variables;
    `cador-trio check` shows them all.
    """
    if context.invoked_subcommand is None:
        context.invoke(serve)


@main.command()
@_env_file
def serve(env_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    from cador_trio.daemon import run_daemon
    from cador_trio.observe.logs import set_up_logs

    with _errors_told():
        settings = load_settings(os.environ, env_file)
        set_up_logs(settings.log_level, settings.log_format)
        for name in unknown_variables(read_variables(os.environ, env_file)):
            structlog.get_logger(__name__).warning("this variable is no setting, is it misspelt?", variable=name)
        sys.exit(trio.run(run_daemon, settings, strict_exception_groups=True))


@main.command()
@_env_file
@click.option(
    "--storage",
    "profiles",
    multiple=True,
    metavar="PROFILE",
    help="Also write a small object to this storage profile, read it back and delete it; may be repeated.",
)
def check(env_file: Path | None, profiles: tuple[str, ...]) -> None:
    """Show the effective settings and try what they point at; exit code 2 or 3 if something is wrong."""
    from cador_trio.check import check_neighbours
    from cador_trio.observe.logs import set_up_logs

    with _errors_told():
        set_up_logs("error", "auto")
        settings = load_settings(os.environ, env_file)
        for name, value in settings.rows():
            click.echo(f"{name}={value}")
        for name in unknown_variables(read_variables(os.environ, env_file)):
            click.echo(f"unknown: {name} is no setting of cador-trio, is it misspelt?")
        findings = trio.run(check_neighbours, settings, profiles)
        for finding in findings:
            click.echo(str(finding))
        sys.exit(0 if all(finding.is_good for finding in findings) else 3)


@main.command()
@click.option("--keep", is_flag=True, help="Stay up after the result is shown, until Ctrl-C.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for the mask and the picture.")
def demo(keep: bool, output: Path | None) -> None:
    """Find the bodies of water around the Black Sea and the Caspian, and compare them with an atlas."""
    from cador_trio.commands.demo import run_demo

    sys.exit(run_demo(keep=keep, output=output))


@contextmanager
def _errors_told() -> Iterator[None]:
    """One line per finding, and the exit code that belongs to it; no traceback for what somebody can mend."""
    try:
        yield
    except* SettingsError as group:
        for error in _leaves(group):
            for finding in error.findings if isinstance(error, SettingsError) else ():
                click.echo(f"cador-trio: {finding}", err=True)
        code = EXIT_SETTINGS
    except* CadorError as group:
        for error in _leaves(group):
            click.echo(f"cador-trio: {error}" + (f" ({error.hint})" if isinstance(error, CadorError) else ""), err=True)
        code = EXIT_UNEXPECTED
    else:
        return
    sys.exit(code)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
