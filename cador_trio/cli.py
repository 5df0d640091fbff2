"""The command `cador-trio`: arguments, exit codes, and what a terminal is told. Everything else is elsewhere.

Subcommands import what they need when they run, so that `cador-trio serve` never pays for the demo's libraries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

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
    from cador_trio.observe.logs import log_stray_errors, set_up_logs
    from cador_trio.observe.traces import open_traces

    with _errors_told():
        settings = load_settings(os.environ, env_file)
        set_up_logs(settings.log_level, settings.log_format)
        log_stray_errors()
        variables = read_variables(os.environ, env_file)
        for name in unknown_variables(variables):
            structlog.get_logger(__name__).warning("this variable is no setting, is it misspelt?", variable=name)
        with open_traces(variables, settings.instance_id):
            exit_code = trio.run(run_daemon, settings, strict_exception_groups=True)
        sys.exit(exit_code)


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
@click.option("--kafka", "by_kafka", is_flag=True, help="Send the job by Kafka: a mock cluster, nothing needed.")
@click.option(
    "--brokers",
    metavar="HOST:PORT,...",
    help="By a real Kafka, exactly once. Topics are created there, and deleted at the end unless --keep. "
    "CADOR_KAFKA_PROPERTIES has the credentials.",
)
def demo(keep: bool, output: Path | None, by_kafka: bool, brokers: str | None) -> None:
    """Find the bodies of water around the Black Sea and the Caspian, and compare them with an atlas."""
    from cador_trio.commands.demo import KafkaChoice, run_demo

    kafka = KafkaChoice(brokers) if by_kafka or brokers is not None else None
    sys.exit(run_demo(keep=keep, output=output, kafka=kafka))


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--http", metavar="URL", help="Send it by HTTP to this daemon (default: http://127.0.0.1:9090).")
@click.option("--kafka", metavar="BROKERS", help="Send it by Kafka to these brokers (default: KAFKA_BROKERS_REQUEST).")
@click.option("--request-topic", metavar="TOPIC", help="Default: EOPAAS_JOB_REQUEST_TOPIC.")
@click.option("--status-topic", metavar="TOPIC", help="Default: EOPAAS_STATUS_UPDATE_TOPIC.")
@click.option("--task-id", metavar="ID", help="technicalMetadata.taskId; by Kafka one is made if there is none.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="An input, as JSON or text; repeatable.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header to go along; repeatable.")
@click.option("--output", type=click.Path(path_type=Path), help="File for the result, instead of standard output.")
@click.option("--no-follow", is_flag=True, help="Send it and leave.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Wait no longer.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the API token (or: CADOR_API_TOKEN).")
@_env_file
def submit(env_file: Path | None, no_follow: bool, timeout: float | None, **options: Any) -> None:
    """Send a request and follow its job to the end; exit code 0 if it succeeded, else 3.

    The request is FILE, standard input (no FILE, or -), or made of --input alone. Without --http and --kafka it goes
    where the daemon's own variables point, by Kafka if they name brokers. Progress goes to standard error, the results
    (by Kafka: the last status) to standard output. Ctrl-C cancels a job by HTTP.
    """
    from cador_trio.commands.submit import Options, run_submit

    with _errors_told():
        variables = read_variables(os.environ, env_file)
    sys.exit(run_submit(Options(follow=not no_follow, seconds=timeout, **options), variables))


@main.group("dead-letters")
@_env_file
@click.option("--kafka", metavar="BROKERS", help="Brokers (default: KAFKA_BROKERS_REQUEST).")
@click.option("--topic", metavar="TOPIC", help="The dead-letter topic (default: CADOR_DEAD_LETTER_TOPIC).")
@click.pass_context
def dead_letters(context: click.Context, env_file: Path | None, kafka: str | None, topic: str | None) -> None:
    """Look at requests that failed for good, and send them again; exit code 3 if there is nothing, or no topic."""
    from cador_trio.commands.dead_letters import Place

    with _errors_told():
        context.obj = Place(read_variables(os.environ, env_file), kafka, topic)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options by which dead letters are chosen."""
    for option in (
        click.option("--error-class", metavar="NAME", help="Only those of this class, such as AlgorithmFailed."),
        click.option("--task-id", metavar="ID", help="Only those of this task."),
        click.option(
            "--since", metavar="WHEN", help="Only those since then: 90s, 30m, 2h, 7d, or an ISO date or time."
        ),
    ):
        command = option(command)
    return command


@dead_letters.command("list")
@_filters
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@click.pass_obj
def list_dead_letters(place: Any, /, limit: int, as_json: bool, **chosen: str | None) -> None:
    """Show them in a table, the newest last."""
    from cador_trio.commands.dead_letters import Filters, run_list

    sys.exit(run_list(place, Filters(**chosen), limit=limit, as_json=as_json))


@dead_letters.command("show")
@click.argument("position", metavar="PARTITION/OFFSET")
@click.option("--value", "only_value", is_flag=True, help="Only the request, byte for byte, secrets and all.")
@click.pass_obj
def show_dead_letter(place: Any, /, position: str, only_value: bool) -> None:
    """Show all of one: why it failed, when, and what the request was."""
    from cador_trio.commands.dead_letters import run_show

    sys.exit(run_show(place, position, only_value=only_value))


@dead_letters.command("replay")
@click.argument("positions", metavar="[PARTITION/OFFSET]...", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="All that are there now, or all that the other options choose.")
@_filters
@click.option("--to", metavar="TOPIC", help="Default: EOPAAS_JOB_REQUEST_TOPIC, else the topic that each came from.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent where.")
@click.pass_obj
def replay_dead_letters(
    place: Any,
    /,
    positions: tuple[str, ...],
    is_all: bool,
    to: str | None,
    dry_run: bool,
    **chosen: str | None,
) -> None:
    """Send them again as they first came: bytes, key and headers. They stay in the dead-letter topic."""
    from cador_trio.commands.dead_letters import Filters, Replay, run_replay

    sys.exit(run_replay(place, Replay(positions, is_all, Filters(**chosen), to, dry_run)))


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
