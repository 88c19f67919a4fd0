"""`rsky-pipeline verify`: is the pipeline well?"""

from collections import Counter
from typing import TYPE_CHECKING

import click

from rsky_pipeline.cli.command import DURATION, Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import line, say
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.health.rules import RuleVerdict
    from rsky_pipeline.operations.verification.run import VerificationReport

# The parts of the pipeline that the rules are about, by name; all others are about its work.
GROUPS = {
    "processes": ("heartbeat", "progress", "stall", "process", "worker_memory", "missing_metrics",
                  "findings", "data_disk"),
    "stores": ("redis", "redis_memory", "eviction", "redis_settings", "capacity", "appends",
               "database", "schema", "pairing", "rev_guard", "deleted_stays_deleted",
               "replica", "retained_wal"),
    "live events": ("relay", "no_relay", "relay_stalled", "cursor_refused", "labeler_stalled",
                    "second_ingester", "gap_repair", "directory", "clock", "rate_out_of_band",
                    "polluted_stream", "cursor_stuck", "latency", "forged_commits"),
    "streams": ("back_pressure", "held_up", "consumer_stall", "oldest", "balance",
                "unread_removed", "pending_without_body", "group_remade", "dead_letters",
                "dead_letters_grow"),
    "work": (),
}  # fmt: skip
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "cyan"}


@operator_command(name="verify")
@click.option("--window", type=DURATION, default="30s", show_default=True, metavar="DURATION",
              help="How long rates are measured.")  # fmt: skip
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES),
              help="Role that has to run here, may be repeated; else expected_roles.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Warnings end with exit code 1.")
@click.option("--quiet", is_flag=True, help="Show only warnings and failures.")
def command(
    run: Invocation, window: float, roles: tuple[str, ...], strict: bool, quiet: bool
) -> int:
    """Check a running pipeline: processes, metrics, streams, rates, latency, database, relays.

    Exit codes: 0 passed (warnings included, unless --strict), 1 warnings with --strict, 2 wrong
    option, 3 nothing is running, 6 something failed.
    """
    from rsky_pipeline.operations.verification.run import verify

    roles = roles or run.settings.expected_roles
    report = verify(run.settings, window, roles=roles, on_progress=say)
    run.answer(report.document(), lambda: show(report, quiet=quiet))
    return exit_code(report, strict=strict)


def exit_code(report: "VerificationReport", *, strict: bool) -> int:
    """Return the exit code for a report; warnings count only with `strict`."""
    if report.nothing_runs:
        return ExitCode.NOT_RUNNING
    if report.status == "fail":
        return ExitCode.DIFFERENCES
    return ExitCode.FAILED if strict and report.status == "warn" else ExitCode.OK


def show(report: "VerificationReport", *, quiet: bool = False) -> None:
    """Print a line a check by groups, and a remedy below each that is not good."""
    from rsky_pipeline.health.rules import PROCESS

    counted, extra = report.checks, 0
    if report.nothing_runs:
        line("  nothing is running", label="fail", colour=COLOURS["fail"])
        line(f"{'':<8}to do: start it: `rsky-pipeline run` or its units")
        counted, extra = tuple(check for check in counted if check.rule is not PROCESS), 1
    shown = [check for check in counted if not quiet or check.status not in ("pass", "skip")]
    width = max((len(check.check) for check in shown), default=0)
    group = ""
    for check in sorted(shown, key=lambda each: list(GROUPS).index(_group(each))):
        if _group(check) != group:
            group = _group(check)
            line(f"{group}:")
        line(
            f"  {check.check:<{width}}  {check.figure}",
            label=f"{check.status:<4}",
            colour=COLOURS[check.status],
        )
        if check.to_do:
            line(f"{'':<{width + 8}}to do: {check.to_do}")
    tally = Counter(check.status for check in counted) + Counter(fail=extra)
    counts = ", ".join(f"{tally[status]} {status}" for status in ("pass", "warn", "fail", "skip"))
    line(f"{report.status}: {counts}")


def _group(check: "RuleVerdict") -> str:
    from rsky_pipeline.health.rules import OF_STORES

    name = check.rule.name
    if name in OF_STORES:
        return "stores"
    return next((group for group, rules in GROUPS.items() if name in rules), "work")
