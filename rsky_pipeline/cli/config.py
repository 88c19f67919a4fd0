"""`rsky-pipeline config`: show and check the configuration."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_table, say
from rsky_pipeline.configuration.load import ConfigurationError
from rsky_pipeline.configuration.report import effective
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.sources import DEFAULT_FILES, UNITS_ENVIRONMENT

if TYPE_CHECKING:
    from rsky_pipeline.operations.connecting import PeerAnswer


@click.group()
def command() -> None:
    """Show or check the configuration."""


@operator_command(command)
def show(run: Invocation) -> None:
    """Print every setting, its value and its origin; passwords are hidden."""
    from rsky_pipeline.embedded.locations import appview_password, appview_url, data_directory

    report = effective(run.loaded)
    for name, item in report.items():
        if name in ("redis_url", "database_url") and item["value"] is None:
            item["embedded"] = getattr(run.settings, name)  # where the embedded store listens
    if url := appview_url(run.settings):
        password = appview_password(data_directory(run.settings))
        report["embedded_database_port"]["embedded"] = f"{url} (password in {password})"
    rows = [
        (name, _shown(item.get("embedded", item["value"])),
         "embedded store" if "embedded" in item else item["origin"])
        for name, item in report.items()
    ]  # fmt: skip
    run.answer(report, lambda: print_table(("SETTING", "VALUE", "FROM"), rows))


@operator_command(command, json=False)
def url(run: Invocation) -> None:
    """Print the URL of the database for an AppView on this machine, with its password.

    With embedded stores it is that of embedded_database_port, else database_url.
    """
    from rsky_pipeline.embedded.locations import (
        appview_password,
        appview_url,
        data_directory,
        embedded_stores,
    )

    address = appview_url(run.settings)
    if address is not None:
        file = appview_password(data_directory(run.settings))
        try:
            password = file.read_text().strip()
        except FileNotFoundError as error:
            text = f"{file} is made when the embedded PostgreSQL starts: `rsky-pipeline start`"
            raise CommandError(text, ExitCode.NOT_RUNNING) from error
        line(address.replace("@", f":{quote(password, safe='')}@", 1))
    elif embedded_stores(run.settings)[1]:
        text = "no AppView can reach the embedded PostgreSQL: set embedded_database_port"
        raise CommandError(text, ExitCode.USAGE)
    else:
        line(run.settings.database_url or "")


@operator_command(command)
@click.option("--connect", is_flag=True,
              help="Also connect to stores, relays, labelers and directory.")  # fmt: skip
def check(run: Invocation, connect: bool) -> int:
    """Check the configuration, and the settings of the stores that it names.

    Exit with 0 if it is valid, or with 2 and a line for each problem. A store that does not answer
    is a remark: it may be started later. With --connect it is a failure: each peer is asked for
    what the pipeline needs, and the exit code is 2 if one refuses (a wrong password), else 69 if
    one cannot be reached.
    """
    try:
        result = run.loaded
    except ConfigurationError as error:
        if not run.as_json:
            raise
        document = {"ok": False, "problems": list(error.problems), "remarks": []}
        run.answer(document, lambda: None)
        return ExitCode.USAGE
    source = f"the file {result.file.path}" if result.file else "no file"
    if result.units_environment:
        source += f" and {result.file.path.with_name(UNITS_ENVIRONMENT)}" if result.file else ""
    problems, advice, unchecked = _check_stores(result.settings)
    of_units = result.file is not None and result.file.path.absolute() == DEFAULT_FILES[-1]
    if of_units:
        problems += _unreadable(result.settings)
    if not of_units or os.geteuid() == 0:  # whose account is not that of an operator
        problems += _not_made(result.settings)
    answers = list["PeerAnswer"]()
    if connect:
        from rsky_pipeline.operations.connecting import ask_everybody

        answers = ask_everybody(result.settings)
    but = f", but {' and '.join(unchecked)} could not be tried" if unchecked else ""
    good = f"the configuration is good{but} (read: {source}, the environment and the flags)"
    remarks = [*result.remarks, *([] if connect else unchecked.values()), *advice]
    document = {
        "ok": not problems and all(each.ok for each in answers),
        "problems": problems,
        "remarks": remarks,
        **({"peers": [asdict(each) for each in answers]} if connect else {}),
    }
    if not run.as_json:
        for remark in remarks:
            say(f"remark: {remark}")
        for problem in problems:
            say(problem)

    def show() -> None:
        if answers:
            rows = [(each.peer, "ok" if each.ok else "FAILS", each.detail) for each in answers]
            print_table(("PEER", "", "ANSWER"), rows)
        if document["ok"]:
            line(good)

    run.answer(document, show)
    if problems or any(each.is_wrong for each in answers):
        return ExitCode.USAGE
    return ExitCode.OK if document["ok"] else ExitCode.UNAVAILABLE


def _check_stores(settings: Settings) -> tuple[list[str], list[str], dict[str, str]]:
    """Return what makes the stores of one's own unfit, advice, and a remark by setting untried."""
    from rsky_pipeline.database import server as database
    from rsky_pipeline.runtime.errors import StoreError
    from rsky_pipeline.streams import server as streams

    problems, remarks, unchecked = list[str](), list[str](), dict[str, str]()
    for name, check in (("redis_url", streams.check), ("database_url", database.check)):
        url: str | None = getattr(settings, name)
        if url is None:  # embedded, with settings of ours
            continue
        try:
            found = check(url)
        except StoreError as error:
            unchecked[name] = f"{name}: the server could not be checked: {error}"
            continue
        for item in found:
            (remarks if item.severity == "advice" else problems).append(f"{name}: {item}")
    return problems, remarks, unchecked


def _not_made(settings: Settings) -> list[str]:
    """Return the directories that a start would not be able to make."""
    from rsky_pipeline.embedded import locations

    resolved = locations.store_urls(locations.resolve_directories(settings))
    wanted = {"run_dir": locations.run_directory(resolved)}
    if any(locations.embedded_stores(resolved)):
        wanted["data_dir"] = locations.data_directory(resolved)
    return [
        f"{name}: {directory} cannot be made: {reason}"
        for name, directory in sorted(wanted.items())
        if (reason := locations.why_not_made(directory)) is not None
    ]


def _unreadable(settings: Settings) -> list[str]:
    """Return the files of the stores that the account of the units cannot read."""
    from rsky_pipeline.embedded.accounts import ACCOUNT_NAME
    from rsky_pipeline.operations.connecting import unreadable_files

    return unreadable_files(settings, ACCOUNT_NAME) if os.geteuid() == 0 else []


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
