"""`rsky-pipeline config`: show and check the configuration."""

import click

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_json, print_table, say
from rsky_pipeline.configuration.load import ConfigurationError
from rsky_pipeline.configuration.report import effective
from rsky_pipeline.configuration.settings import Settings


@click.group()
def command() -> None:
    """Show or check the configuration."""


@operator_command(command)
def show(run: Invocation) -> None:
    """Print every setting, its value and its origin; passwords are hidden."""
    report = effective(run.loaded)
    for name, item in report.items():
        if name in ("redis_url", "database_url") and item["value"] is None:
            item["embedded"] = getattr(run.settings, name)  # where the embedded store listens
    rows = [
        (name, _shown(item.get("embedded", item["value"])),
         "embedded store" if "embedded" in item else item["origin"])
        for name, item in report.items()
    ]  # fmt: skip
    run.answer(report, lambda: print_table(("SETTING", "VALUE", "FROM"), rows))


@operator_command(command)
def check(run: Invocation) -> int:
    """Check the configuration, and the settings of the stores that it names.

    Exit with 0 if it is valid, or with 2 and a line for each problem. A store that does not answer
    is a remark: it may be started later.
    """
    try:
        result = run.loaded
    except ConfigurationError as error:
        if not run.as_json:
            raise
        print_json({"ok": False, "problems": list(error.problems), "remarks": []})
        return ExitCode.USAGE
    source = f"the file {result.file.path}" if result.file else "no file"
    problems, advice, unchecked = _check_stores(result.settings)
    but = f", but {' and '.join(unchecked)} could not be tried" if unchecked else ""
    good = f"the configuration is good{but} (read: {source}, the environment and the flags)"
    remarks = [*result.remarks, *advice]
    document = {"ok": not problems, "problems": problems, "remarks": remarks}
    if not run.as_json:
        for remark in remarks:
            say(f"remark: {remark}")
        for problem in problems:
            say(problem)
    run.answer(document, lambda: None if problems else line(good))
    return ExitCode.USAGE if problems else ExitCode.OK


def _check_stores(settings: Settings) -> tuple[list[str], list[str], list[str]]:
    """Return what makes the stores of one's own unfit, remarks, and the settings not tried."""
    from rsky_pipeline.database import server as database
    from rsky_pipeline.runtime.errors import StoreError
    from rsky_pipeline.streams import server as streams

    problems, remarks, unchecked = list[str](), list[str](), list[str]()
    for name, check in (("redis_url", streams.check), ("database_url", database.check)):
        url: str | None = getattr(settings, name)
        if url is None:  # embedded, with settings of ours
            continue
        try:
            found = check(url)
        except StoreError as error:
            remarks.append(f"{name}: the server could not be checked: {error}")
            unchecked.append(name)
            continue
        for item in found:
            (remarks if item.severity == "advice" else problems).append(f"{name}: {item}")
    return problems, remarks, unchecked


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
