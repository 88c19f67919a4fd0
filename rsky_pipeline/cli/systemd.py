"""`rsky-pipeline systemd`: install the unit files, remove them, show their state."""

import subprocess
from pathlib import Path
from typing import Any

import click

from rsky_pipeline.cli.command import CommandError, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, print_table

ROOT = Path("/")
Answer = dict[str, Any]
root_option = click.option("--root", type=click.Path(path_type=Path, file_okay=False),
    default=ROOT, show_default=True,
    help="Another root of the system, such as a container's or an image's.")  # fmt: skip
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan; change nothing.")


@click.group()
def command() -> None:
    """Install, remove or show the systemd units of the three roles."""


@operator_command(command)
@root_option
@dry_run_option
def install(run: Invocation, root: Path, dry_run: bool) -> None:
    """Write the units, the account and the directories.

    Reloads systemd. Changes only files that differ, and never an existing configuration. Nothing is
    started or enabled. Units start the setting binary_path (default /usr/local/bin/rsky-pipeline).
    """
    from rsky_pipeline.systemd import files, systemctl

    program = run.loaded.settings.binary_path or files.STANDARD_PROGRAM
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
    _answer(run, {"done": done, "remarks": remarks, "dry_run": dry_run})


@operator_command(command, configuration=False)
@root_option
@dry_run_option
def uninstall(run: Invocation, root: Path, dry_run: bool) -> None:
    """Remove the units; configuration, data and the account stay.

    Refuses while a unit runs: `rsky-pipeline stop --ordered` first.
    """
    from rsky_pipeline.systemd import files, systemctl

    if root == ROOT and systemctl.is_running():
        units = systemctl.installed(systemctl.Systemd())
        up = [unit.name for those in units.values() for unit in those if unit.is_up]
        if up and not dry_run:
            raise CommandError(
                f"{', '.join(up)} still run: `rsky-pipeline stop --ordered` first", ExitCode.FAILED
            )
    try:
        done = files.uninstall(root, files.shipped(), dry_run=dry_run)
    except OSError as error:
        raise _refused(error) from error
    if done and root == ROOT and not dry_run and systemctl.is_running():
        systemctl.Systemd().reload()
        done.append("systemctl daemon-reload")
    _answer(run, {"done": done, "remarks": [], "dry_run": dry_run})


@operator_command(command)
@root_option
def status(run: Invocation, root: Path) -> int:
    """Show each installed file and the state of each unit.

    Exit codes: 0 all units are active, 1 one is not or a file differs, 3 nothing is installed.
    """
    from rsky_pipeline.systemd import files, systemctl

    program = run.loaded.settings.binary_path or files.STANDARD_PROGRAM
    found = {f"/{file.path}": file.state(root) for file in files.shipped(program)}
    asks = root == ROOT and systemctl.is_running()
    roles = systemctl.installed(systemctl.Systemd()) if asks else {}
    units = [
        {"unit": unit.name, "role": role, "active": unit.active, "sub": unit.sub,
         "result": unit.result, "pid": unit.pid, "program": str(unit.program)}
        for role, those in roles.items() for unit in those
    ]  # fmt: skip

    def show() -> None:
        print_table(("FILE", "STATE"), list(found.items()))
        if units:
            line()
            rows = [(u["unit"], f"{u['active']} ({u['sub']})", u["pid"] or "-") for u in units]
            print_table(("UNIT", "STATE", "PID"), rows)
        elif not asks:
            line("systemd does not run here, so units have no state")

    run.answer({"files": found, "units": units, "systemd_is_running": asks}, show)
    if all(state == "missing" for state in found.values()):
        return ExitCode.NOT_RUNNING
    good = all(state == "current" for state in found.values())
    active = not asks or all(unit["active"] == "active" for unit in units)
    return ExitCode.OK if good and active else ExitCode.FAILED


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
            raise CommandError(f"{each[0]} is not there: is this a systemd host?", 1) from error
        if result.returncode:
            words = " ".join(result.stderr.split())
            raise CommandError(f"{' '.join(each)}: {words}", ExitCode.FAILED)
        done.append(" ".join(each))
    return done


def _refused(error: OSError) -> CommandError:
    code = ExitCode.NO_PERMISSION if isinstance(error, PermissionError) else ExitCode.FAILED
    return CommandError(
        f"{error.filename}: {error.strerror}; run as root, or choose another --root", code
    )


def _answer(run: Invocation, answer: Answer) -> None:
    def show() -> None:
        for text in answer["done"] or ["everything is as it should be already"]:
            line(f"would {text}" if answer["dry_run"] and answer["done"] else text)
        for remark in answer["remarks"]:
            line(remark)

    run.answer(answer, show)
