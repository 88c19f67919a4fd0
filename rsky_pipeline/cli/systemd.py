"""`rsky-pipeline systemd`: put the unit files in place, remove them, show what they do."""

import subprocess
from pathlib import Path
from typing import Any

import click

from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.options import configuration_options, loaded
from rsky_pipeline.cli.output import fail, print_json, print_table

ROOT = Path("/")
Answer = dict[str, Any]
root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT,
    show_default=True,
    help="Another root of the system, such as a container's or an image's.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be done.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def command() -> None:
    """Install, remove or show the systemd units of the three roles."""


@command.command()
@root_option
@dry_run_option
@json_option
@configuration_options
def install(root: Path, dry_run: bool, as_json: bool, **parameters: Any) -> None:
    """Write the units, the account and the directories, and have systemd read them.

    Changes nothing that is as it should be, and never an existing configuration. Nothing is started
    or enabled. Units start the setting binary_path (default /usr/local/bin/rsky-pipeline).
    """
    from rsky_pipeline.systemd import files, systemctl

    program = loaded(parameters).settings.binary_path or files.STANDARD_PROGRAM
    try:
        done = files.install(root, files.shipped(program), dry_run=dry_run)
    except OSError as error:
        raise _refused(error) from error
    if root == ROOT and not dry_run:
        done += _apply()
    remarks = []
    if not (root / program.relative_to("/")).exists():
        remarks.append(f"{program} is not there yet: install -m 755 rsky-pipeline {program}")
    if done:
        remarks.append(f"then: systemctl enable --now {systemctl.TARGET}")
    _tell({"done": done, "remarks": remarks, "dry_run": dry_run}, as_json)


@command.command()
@root_option
@dry_run_option
@json_option
def uninstall(root: Path, dry_run: bool, as_json: bool) -> None:
    """Remove the units; configuration, data and the account stay.

    Refuses while a unit runs: `rsky-pipeline stop --ordered` first.
    """
    from rsky_pipeline.systemd import files, systemctl

    if root == ROOT and systemctl.is_running():
        units = systemctl.installed(systemctl.Systemd())
        up = [unit.name for those in units.values() for unit in those if unit.is_up]
        if up and not dry_run:
            raise fail(
                f"{', '.join(up)} still run: `rsky-pipeline stop --ordered` first", ExitCode.FAILED
            )
    try:
        done = files.uninstall(root, files.shipped(), dry_run=dry_run)
    except OSError as error:
        raise _refused(error) from error
    if done and root == ROOT and not dry_run and systemctl.is_running():
        systemctl.Systemd().reload()
        done.append("systemctl daemon-reload")
    _tell({"done": done, "remarks": [], "dry_run": dry_run}, as_json)


@command.command()
@root_option
@json_option
@configuration_options
def status(root: Path, as_json: bool, **parameters: Any) -> None:
    """Show each installed file and the state of each unit.

    Exit codes: 0 all units are active, 1 one is not or a file differs, 3 nothing is installed.
    """
    from rsky_pipeline.systemd import files, systemctl

    program = loaded(parameters).settings.binary_path or files.STANDARD_PROGRAM
    found = {f"/{file.path}": file.state(root) for file in files.shipped(program)}
    asks = root == ROOT and systemctl.is_running()
    roles = systemctl.installed(systemctl.Systemd()) if asks else {}
    units = [
        {"unit": unit.name, "role": role, "active": unit.active, "sub": unit.sub,
         "result": unit.result, "pid": unit.pid, "program": str(unit.program)}
        for role, those in roles.items() for unit in those
    ]  # fmt: skip
    if as_json:
        print_json({"files": found, "units": units, "systemd_is_running": asks})
    else:
        print_table(("FILE", "STATE"), list(found.items()))
        if units:
            click.echo()
            rows = [(u["unit"], f"{u['active']} ({u['sub']})", u["pid"] or "-") for u in units]
            print_table(("UNIT", "STATE", "PID"), rows)
        elif not asks:
            click.echo("systemd does not run here, so units have no state")
    if all(state == "missing" for state in found.values()):
        raise click.exceptions.Exit(ExitCode.NOT_RUNNING)
    good = all(state == "current" for state in found.values())
    if not good or (asks and not all(unit["active"] == "active" for unit in units)):
        raise click.exceptions.Exit(ExitCode.FAILED)


def _apply() -> list[str]:
    """Make the account and the directories, and have systemd read the units."""
    from rsky_pipeline.systemd import systemctl

    commands = [
        ["systemd-sysusers", "rsky-pipeline.conf"],
        ["systemd-tmpfiles", "--create", "rsky-pipeline.conf"],
    ]
    if systemctl.is_running():
        commands.append(["systemctl", "daemon-reload"])
    done = []
    for each in commands:
        try:
            result = subprocess.run(each, capture_output=True, text=True, timeout=60, check=False)
        except FileNotFoundError as error:
            raise fail(f"{each[0]} is not there: is this a systemd host?", 1) from error
        if result.returncode:
            words = " ".join(result.stderr.split())
            raise fail(f"{' '.join(each)}: {words}", ExitCode.FAILED)
        done.append(" ".join(each))
    return done


def _refused(error: OSError) -> "click.exceptions.Exit":
    code = ExitCode.NO_PERMISSION if isinstance(error, PermissionError) else ExitCode.FAILED
    return fail(f"{error.filename}: {error.strerror}; run as root, or choose another --root", code)


def _tell(answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    for line in answer["done"] or ["everything is as it should be already"]:
        click.echo(f"would {line}" if answer["dry_run"] and answer["done"] else line)
    for line in answer["remarks"]:
        click.echo(line)
