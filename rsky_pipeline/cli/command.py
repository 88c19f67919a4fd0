"""The frame of every command: options, configuration, stores, answer and exit code.

`@operator_command` makes a command of a function that takes an `Invocation` first and then its own
options. It adds `--json`, `--config`, `--set` and the flags of the commonest settings, and turns
the errors of the configuration, the stores and the supervisor into one line and an exit code. The
function returns its exit code (None is 0), or raises CommandError.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import block, line, print_json, say
from rsky_pipeline.configuration.advice import choose
from rsky_pipeline.configuration.load import ConfigurationError, Loaded, load
from rsky_pipeline.configuration.settings import declarations

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import SettingInfo, Settings
    from rsky_pipeline.database.connection import Database
    from rsky_pipeline.operations.subjects import NamedSubject
    from rsky_pipeline.streams.connection import Store

# The settings that deserve a flag of their own; every other one is set by --set.
FLAGS = (
    "relay_hosts", "labeler_hosts", "plc_url", "redis_url", "database_url", "data_dir", "run_dir",
    "initial_cursor", "verify", "log_level", "log_format",
)  # fmt: skip
# Lists also have a flag for one item, which can be repeated.
ITEM_FLAGS = {"--relay": "relay_hosts", "--labeler": "labeler_hosts"}
_PARAMETER = "flag_{}"
_ITEM_PARAMETER = "items_{}"
_SHARED = "invocation_json"
# The options that choose a pipeline, for the commands that messages advise.
_CHOOSING = {
    "--config": "config_file", "--data-dir": _PARAMETER.format("data_dir"),
    "--run-dir": _PARAMETER.format("run_dir"),
}  # fmt: skip
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class CommandError(click.ClickException):
    """Ends a command with a line on standard error (or several) and an exit code."""

    def __init__(self, message: str, code: int, *, more: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.exit_code = int(code)  # type: ignore[misc]  # click's is of the class
        self._more = more

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, a line each."""
        for message in (self.message, *self._more):
            say(message)


class SettingOption(click.Option):
    """An option that every command has: one line of its help stands for all of them."""


class OperatorCommand(click.Command):
    """A command whose help shows its own options, an example, and the settings only on demand."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that only this command has."""
        shared = [each for each in self.params if isinstance(each, SettingOption)]
        own = [
            each
            for each in self.get_params(ctx)
            if each not in shared and isinstance(each, click.Option)
        ]
        records = [record for each in own if (record := _record(each, ctx))]
        if shared:
            records.append(("--help-settings", "Show the options of settings, and exit."))
        with formatter.section("Options"):
            formatter.write_dl(records)
        if shared:
            with formatter.section("Settings"):
                formatter.write_text(
                    "--config FILE, --set NAME=VALUE for any setting (relay_hosts, redis_url ...), "
                    "and options of the commonest ones: see --help-settings."
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what names an account, and an example."""
        from rsky_pipeline.cli.examples import EXAMPLES

        takes = [each for each in self.params if isinstance(each.type, SubjectType)]
        if takes or self.name == "add":
            with formatter.section("Accounts and records"):
                formatter.write_text(
                    "An account is named by its DID, its handle, an at-uri or a link of bsky.app; "
                    "a record by an at-uri or a link."
                )
        example = EXAMPLES.get(" ".join(_path(ctx)))
        if example:
            with formatter.section("Example"):
                formatter.write_text(example)

    def format_settings(self, ctx: click.Context) -> str:
        """Return the help of the options of settings."""
        formatter = ctx.make_formatter()
        shared = [each for each in self.params if isinstance(each, SettingOption)]
        with formatter.section("Settings of every command"):
            formatter.write_dl([record for each in shared if (record := _record(each, ctx))])
        formatter.write_paragraph()
        formatter.write_text(
            "Every setting stands in docs/configuration.md; `rsky-pipeline config show` prints the "
            "values in use and where they come from."
        )
        return formatter.getvalue()


def _path(ctx: click.Context) -> list[str]:
    """Return the words of a command, without the program."""
    if ctx.parent is None:
        return []
    return [*_path(ctx.parent), ctx.info_name or ""]


def _record(option: click.Option, ctx: click.Context) -> tuple[str, str] | None:
    """Return the help of an option under its first name; earlier names are not shown."""
    record = option.get_help_record(ctx)
    if record is None:
        return None
    names = [each for each in option.opts if each.startswith("--")]
    if len(names) < 2:
        return record
    shown, text = record
    return shown.replace(", ".join(option.opts), names[0]), text


def _show_settings(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        assert isinstance(ctx.command, OperatorCommand)
        block(ctx.command.format_settings(ctx))
        ctx.exit()


class Invocation:
    """One call of a command: its configuration, its stores, and where its answer goes."""

    def __init__(self, parameters: Mapping[str, Any], as_json: bool) -> None:
        self._parameters = dict(parameters)
        self.as_json = as_json
        self.is_configured = "config_file" in parameters  # whether it has these options at all

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration with its origins. Raises ConfigurationError."""
        return _load(self._parameters)

    @cached_property
    def settings(self) -> "Settings":
        """The settings with directories and the URLs of embedded stores."""
        from rsky_pipeline.embedded.locations import resolve_directories, store_urls

        return store_urls(resolve_directories(self.loaded.settings))

    def read_again(self) -> "Settings":
        """Return the settings as configured now. Raises ConfigurationError."""
        return _load(self._parameters).settings

    @property
    def run_directory(self) -> Path:
        """Where the supervisors of this configuration have their sockets."""
        from rsky_pipeline.embedded.locations import run_directory

        return run_directory(self.settings)

    @property
    def given(self) -> list[str]:
        """The configuration options as they were typed, for a command that is started by this."""
        flags = {each.name: each.opts[0] for each in click.get_current_context().command.params}
        found = []
        for name, value in self._parameters.items():
            values = value if isinstance(value, tuple) else (() if value is None else (value,))
            found += [f"{flags[name]}={one}" for one in values]
        return found

    def assign(self, *assignments: str) -> None:
        """Add settings as `--set` does; before the configuration is looked at."""
        self._parameters["assignments"] = (*self._parameters["assignments"], *assignments)

    def subjects(self, *given: Iterable["NamedSubject"]) -> list["NamedSubject"]:
        """Return subjects, each once, with the DIDs of their handles.

        Raises CommandError for a handle without an account, or that cannot be resolved now.
        """
        from rsky_pipeline.network.handles import HandleUnavailableError
        from rsky_pipeline.operations.subjects import resolve

        named = [each for group in given for each in group]
        found = resolve(self.settings, named)
        for problem in found.problems.values():
            away = isinstance(problem, HandleUnavailableError)
            raise CommandError(str(problem), ExitCode.UNAVAILABLE if away else ExitCode.USAGE)
        for handle, did in found.dids.items():
            say(f"{handle} is {did}")
        whole = (replace(each, account=found.dids.get(each.account, each.account))
                 for each in named)  # fmt: skip
        return list(dict.fromkeys(whole))

    def accounts(self, *given: Iterable["NamedSubject"]) -> list[str]:
        """Return the DIDs of accounts, each once; of a record, that of its account."""
        accounts = (replace(each, collection="", rkey="") for group in given for each in group)
        return [each.account for each in self.subjects(accounts)]

    @contextmanager
    def store(self, name: str) -> Iterator["Store"]:
        """Yield a connection to the configured Redis."""
        from rsky_pipeline.streams.connection import connect

        with closing(connect(self.settings.redis_url or "", name=name)) as store:
            yield store

    @contextmanager
    def database(self, name: str, *, statement_timeout_ms: int = 0) -> Iterator["Database"]:
        """Yield a connection to the configured PostgreSQL; by default statements may take long."""
        from rsky_pipeline.database.connection import Database

        with Database.connect(
            self.settings.database_url or "",
            schema=self.settings.database_schema,
            name=name,
            statement_timeout_ms=statement_timeout_ms,
        ) as database:
            yield database

    def tell(self, message: str) -> None:
        """Print a step of an operation while it lasts; beside JSON on standard error."""
        say(message) if self.as_json else line(message)

    def answer(self, document: Any, show: Callable[[], object]) -> None:
        """Print the document with `--json`; otherwise have it shown for people."""
        if self.as_json:
            print_json(document)
        else:
            show()


def operator_command(
    group: click.Group | None = None,
    name: str | None = None,
    *,
    json: bool = True,
    configuration: bool = True,
    aliases: tuple[str, ...] = (),
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command; its docstring is the help, its options come before the shared ones.

    `aliases` are earlier names of the command in its group: they work and are not listed.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        shared = [
            *(
                [click.Option(["--json", _SHARED], is_flag=True, help="Print one JSON document.")]
                if json
                else []
            ),
            *(configuration_options() if configuration else []),
        ]

        @wraps(function)
        def call(**parameters: Any) -> None:
            names = {each.name for each in shared}
            ours = {key: value for key, value in parameters.items() if key in names}
            own = {key: value for key, value in parameters.items() if key not in names}
            run = Invocation(ours, bool(ours.pop(_SHARED, False)))
            choose(_chosen(ours), os.environ)
            with _explained(run):
                code = function(run, **own)
            if code:
                raise click.exceptions.Exit(code)

        def command(visible: bool) -> click.Command:
            own = reversed(getattr(function, "__click_params__", []))
            return OperatorCommand(
                name or function.__name__,
                callback=call,
                params=[*own, *shared],
                help=inspect.getdoc(function),
                hidden=not visible,
            )

        if group is not None:
            group.add_command(command(True))
            for alias in aliases:
                group.add_command(command(False), alias)
        return command(True)

    return decorate


def subjects_argument(
    name: str = "given", *, metavar: str = "[ACCOUNT]...", many: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the accounts, or records, that a command is about."""
    return click.argument(
        name, nargs=-1 if many else 1, type=SUBJECT, metavar=metavar, required=not many
    )


def old_option(flag: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the hidden option by which a command was given its subjects before."""
    return click.option(flag, name, multiple=True, type=SUBJECT, hidden=True)


def configuration_options() -> list[click.Option]:
    """Return --config, --set and the flags of the commonest settings."""
    known = declarations()
    items = {setting: flag for flag, setting in ITEM_FLAGS.items()}
    return [
        SettingOption(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            help="TOML file. Default: $RSKY_PIPELINE_CONFIG, ./rsky-pipeline.toml, "
            "/etc/rsky-pipeline/rsky-pipeline.toml.",
        ),
        SettingOption(
            ["--set", "assignments"],
            multiple=True,
            metavar="NAME=VALUE",
            shell_complete=_complete_settings,
            help="Any setting of docs/configuration.md; may be repeated.",
        ),
        *(
            SettingOption(
                [flag, _ITEM_PARAMETER.format(setting)], multiple=True, metavar="HOST", hidden=True
            )
            for flag, setting in ITEM_FLAGS.items()
        ),
        *(
            SettingOption(
                [f"--{setting.replace('_', '-')}", _PARAMETER.format(setting)],
                metavar=_metavar(setting, known[setting]),
                shell_complete=partial(_complete_choices, known[setting].choices),
                help=known[setting].help
                + (f" Or {items[setting]} HOST, repeated." if setting in items else ""),
            )
            for setting in FLAGS
        ),
        click.Option(
            ["--help-settings"], is_flag=True, is_eager=True, expose_value=False, hidden=True,
            callback=_show_settings,
        ),
    ]  # fmt: skip


def _metavar(setting: str, info: "SettingInfo") -> str:
    if info.choices:
        return f"[{'|'.join(info.choices)}]"
    return "A,B" if setting in ITEM_FLAGS.values() else "VALUE"


def confirm(lost: str, yes: bool) -> None:
    """Name a loss, and ask unless the answer was given. Ends the command if it is refused."""
    say(f"this loses for good: {lost}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError("standard input is no terminal: pass --yes to go on", ExitCode.USAGE)
    if not click.confirm("Go on?", err=True):
        raise click.exceptions.Exit(ExitCode.FAILED)


def _complete_choices(
    choices: Sequence[str], ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str]:
    return [each for each in choices if each.startswith(incomplete)]


def _complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    name, separator, value = incomplete.partition("=")
    known = declarations()
    if not separator:
        return [f"{each}=" for each in known if each.startswith(name.replace("-", "_"))]
    info = known.get(name.replace("-", "_"))
    return [f"{name}={each}" for each in info.choices if each.startswith(value)] if info else []


class StreamName(click.ParamType[str]):
    """The name of a stream; the command checks it. `letters` completes dead-letter streams."""

    name = "stream"

    def __init__(self, *, letters: bool = False) -> None:
        self._letters = letters

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the known streams."""
        from rsky_pipeline.streams.names import (
            FIREHOSE_RAW_LETTERS,
            LABEL_RAW_LETTERS,
            STREAMS,
            dead_letters,
        )

        names = list(STREAMS)
        if self._letters:
            names = [*map(dead_letters, STREAMS), FIREHOSE_RAW_LETTERS, LABEL_RAW_LETTERS]
        return [CompletionItem(each) for each in names if each.startswith(incomplete)]


class HostName(click.ParamType[str]):
    """The name of a host; the command reads it."""

    name = "host"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the configured relays and labelers."""
        try:
            settings = load(ctx.params.get("config_file"), os.environ, {}).settings
        except ConfigurationError:
            return []
        hosts = (each.key for each in (*settings.relays, *settings.labelers))
        return [CompletionItem(each) for each in hosts if each.startswith(incomplete)]


class SubjectType(click.ParamType["NamedSubject"]):
    """An account or a record, as somebody types or pastes it."""

    name = "account"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "NamedSubject":
        """Read it; handles are resolved later, by `Invocation.accounts` and `subjects`."""
        from rsky_pipeline.operations.subjects import NamedSubject, read_subject

        if isinstance(value, NamedSubject):
            return value
        try:
            return read_subject(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[float]):
    """A number of seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r}: allowed is a duration such as 90s, 30m, 1h or 7d", param, ctx)
        return float(found[1]) * _UNIT_SECONDS[found[2]]


DURATION = Duration()
SUBJECT = SubjectType()
STREAM_NAME, LETTERS_NAME, HOST_NAME = StreamName(), StreamName(letters=True), HostName()


def _chosen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what chooses the pipeline, by its option, also where `--set` says it."""
    assigned = {
        name.strip().replace("_", "-"): value
        for name, _, value in (each.partition("=") for each in parameters.get("assignments", ()))
    }
    return {
        option: parameters.get(name) or assigned.get(option[2:])
        for option, name in _CHOOSING.items()
    }


def _load(parameters: dict[str, Any]) -> Loaded:
    flags, spelled, problems = _flags(parameters)
    try:
        result = load(parameters["config_file"], os.environ, flags, spelled)
    except ConfigurationError as error:
        raise ConfigurationError([*problems, *error.problems]) from error
    if problems:
        raise ConfigurationError(problems)
    return result


def _flags(parameters: dict[str, Any]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the texts by setting, how each was spelled if unusually, and contradictions."""
    flags: dict[str, str] = {}
    spelled: dict[str, str] = {}
    problems: list[str] = []

    def take(name: str, value: str, spelling: str) -> None:
        if name in flags:
            problems.append(f"{name}: {spelled[name]} and {spelling} both set it: give one")
        flags[name], spelled[name] = value, spelling

    for name in FLAGS:
        value = parameters[_PARAMETER.format(name)]
        if value is not None:
            take(name, value, f"--{name.replace('_', '-')}")
    for flag, name in ITEM_FLAGS.items():
        if items := parameters[_ITEM_PARAMETER.format(name)]:
            take(name, ",".join(items), flag)
    for assignment in parameters["assignments"]:
        name, separator, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not separator:
            # A value alone could be a secret: it is not repeated.
            problems.append("--set: allowed is NAME=VALUE, such as indexer_batch_size=500")
            continue
        take(name, value, f"--set {name}")
    return flags, spelled, problems


@contextmanager
def _explained(run: Invocation) -> Iterator[None]:
    """Turn the errors that every command may meet into one line and an exit code."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except ConfigurationError as error:
        first, *more = error.problems
        raise CommandError(first, ExitCode.USAGE, more=tuple(more)) from error
    except Exception as error:
        explained = explain(error, run)
        if explained is None:
            raise
        raise explained from error


def explain(error: Exception, run: Invocation) -> CommandError | None:
    """Return how a command ends for an error of a store or a supervisor; None for any other."""
    from rsky_pipeline.runtime.errors import StoreError, WorkerError

    if isinstance(error, StoreError):
        # Imported only now: `status` of a pipeline that is not running needs no client.
        from rsky_pipeline.database.errors import DatabaseError

        failed = _database_failed if isinstance(error, DatabaseError) else _store_failed
        return failed(error, run)
    if isinstance(error, WorkerError):
        return CommandError(str(error), error.exit_code)
    return None


def _store_failed(error: Exception, run: Invocation) -> CommandError:
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.streams.errors import StoreUnavailableError

    where = redacted(run.settings.redis_url or "") if run.is_configured else "Redis"
    if not isinstance(error, StoreUnavailableError):
        return CommandError(f"{where}: {error}", ExitCode.FAILED)
    if run.is_configured and run.loaded.settings.redis_url is None:
        return CommandError(
            f"the embedded Valkey in {run.settings.data_dir} does not run: start the pipeline with "
            "`rsky-pipeline start`, or set redis_url to another server",
            ExitCode.UNAVAILABLE,
        )
    hint = "check redis_url and the server"
    return CommandError(f"{where}: {error}; {hint}", ExitCode.UNAVAILABLE)


def _database_failed(error: Exception, run: Invocation) -> CommandError:
    from rsky_pipeline.configuration.redaction import redacted
    from rsky_pipeline.database.errors import DatabaseUnavailableError, TransactionConflictError

    text = " ".join(str(error).split())
    where = "PostgreSQL"
    if run.is_configured:
        where += f" at {redacted(run.settings.database_url or '')}"
    if isinstance(error, TransactionConflictError):
        hint = "something holds a lock for long: stop the pipeline's workers and try again"
        return CommandError(f"{where}: {text}; {hint}", ExitCode.UNAVAILABLE)
    if not isinstance(error, DatabaseUnavailableError):
        return CommandError(f"{where}: {text}", ExitCode.FAILED)
    if run.is_configured and run.loaded.settings.database_url is None:
        return CommandError(
            f"the embedded PostgreSQL in {run.settings.data_dir} does not run: start the pipeline "
            "with `rsky-pipeline start`, or set database_url to another server",
            ExitCode.UNAVAILABLE,
        )
    return CommandError(f"{where} cannot be used: {text}", ExitCode.UNAVAILABLE)
