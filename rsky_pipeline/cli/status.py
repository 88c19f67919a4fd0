"""`rsky-pipeline status`: processes, rates, lag and streams of a running pipeline."""

from typing import Any

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import duration, line, print_table, say

HEADER = (
    *("PROCESS", "PID", "STATE", "UPTIME", "RESTARTS", "RATE/s", "LAG", "MEMORY", "PORT"),
    "LAST EXIT",
)


@operator_command(name="status")
def command(run: Invocation) -> int:
    """Show processes, rates, lag and stream lengths.

    Exit codes: 0 everything is ready, 1 something is not, 3 nothing is running, 4 no answer.
    """
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.operations.deployment.journal import interrupted
    from rsky_pipeline.supervisor import client
    from rsky_pipeline.supervisor.errors import NoAnswerError, NotRunningError

    entry = interrupted(data_directory(run.settings))
    deployment = {"deployment": entry.describe()} if entry else {}
    try:
        documents = [each.status for each in client.find(run.run_directory)]
    except (NotRunningError, NoAnswerError) as error:
        run.answer({**merged([]), **deployment, "problem": str(error)}, lambda: None)
        if entry:
            say(entry.describe())
        raise
    run.answer({**merged(documents), **deployment}, lambda: show(documents))
    if entry:
        say(entry.describe())
    healthy = all(document["healthy"] for document in documents)
    return ExitCode.OK if healthy else ExitCode.FAILED


def merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the documents of several supervisors; the result is a `PipelineStatus`."""
    from rsky_pipeline.supervisor.status_document import SCHEMA_VERSION

    return {
        "schema_version": documents[0]["schema_version"] if documents else SCHEMA_VERSION,
        "healthy": bool(documents) and all(document["healthy"] for document in documents),
        "roles": sorted({role for document in documents for role in document["roles"]}),
        "processes": [
            {"problems": [], "findings": [], **process}  # an older version does not know these
            for document in documents
            for process in document["processes"]
        ],
        "streams": {
            name: length for document in documents for name, length in document["streams"].items()
        },
        "dead_letters": {
            name: count
            for document in documents
            for name, count in document.get("dead_letters", {}).items()
        },
        "supervisors": [
            {
                key: document.get(key)  # an older version may not know it
                for key in (
                    "pid",
                    "state",
                    "roles",
                    "uptime_seconds",
                    "version",
                    "commit",
                    "built_at",
                    "healthy",
                )
            }
            for document in documents
        ],
    }


def show(documents: list[dict[str, Any]]) -> None:
    """Print tables for people."""
    for document in documents:
        roles = ", ".join(document["roles"])
        uptime = duration(document["uptime_seconds"])
        line(f"{document['state']}: {roles} (pid {document['pid']}, up {uptime})")
    together = merged(documents)
    line()
    print_table(HEADER, [_row(process) for process in together["processes"]])
    for process in together["processes"]:
        if process["trouble"] and process["trouble"] != "starting":
            line(f" {process['trouble']}", label=f"{process['name']}:", colour="red")
    for role in _stopped(documents):
        line(f"{role}: stopped; to do: `rsky-pipeline start --role {role}`")
    for warning in warnings([each for each in together["processes"] if each["pid"]]):
        name, _, text = warning.partition(": ")
        failing = text.startswith("failure")
        line(f" {text}", label=f"{name}:", colour="red" if failing else "yellow")
    if together["streams"]:
        line()
        streams = sorted(together["streams"].items())
        letters = together["dead_letters"]
        print_table(
            ("STREAM", "ENTRIES", "DEAD"),
            [
                (name, f"{length:,}", f"{letters[name]:,}" if name in letters else "-")
                for name, length in streams
            ],
        )
        if any(letters.values()):
            counts = ", ".join(f"{name} {count:,}" for name, count in letters.items() if count)
            text = f" {counts}; to do: `rsky-pipeline dlq list`"
            line(text, label="dead letters:", colour="yellow")


def warnings(processes: list[dict[str, Any]]) -> list[str]:
    """Return a line for each finding of a worker's self-check, with its remedy."""
    from rsky_pipeline.health.rules import finding_status, rule_of
    from rsky_pipeline.runtime.health_document import read_health

    lines = []
    for process in processes:
        health = read_health(process.get("health"))
        for finding in health.get("findings", ()):
            kind, _, subject = finding.partition(" ")
            failing = finding in health.get("failing", ())
            rule, status = rule_of(kind), finding_status(kind, failing=failing)
            word = "failure" if status == "fail" else "warning"
            text = "unknown finding"
            if rule:
                text = f"{rule.title}; to do: {rule.remedy.replace('{subject}', subject)}"
            lines.append(f"{process['name']}: {word}: {finding}: {text}")
    return lines


def _stopped(documents: list[dict[str, Any]]) -> list[str]:
    """Return the roles that a command stopped under a supervisor that runs."""
    return list(
        dict.fromkeys(
            process["role"]
            for document in documents
            if document["state"] == "running"
            for process in document["processes"]
            if process["state"] == "stopped" and not process["wanted"]
        )
    )


def _row(process: dict[str, Any]) -> tuple[object, ...]:
    memory = process["rss_bytes"]
    return (
        process["name"],
        process["pid"] or "-",
        process["state"] + (" (crash loop)" if _hides_loop(process) else ""),
        duration(process["uptime_seconds"]),
        process["restarts"],
        _number(process["rate"]),
        _lag(process),
        "-" if memory is None else f"{memory / 1e6:.0f} MB",
        process["metrics_port"] or "-",
        _last_exit(process["last_exit"]),
    )


def _hides_loop(process: dict[str, Any]) -> bool:
    return bool(process["crash_looping"]) and process["state"] != "crashloop"


def _lag(process: dict[str, Any]) -> str:
    if process["lag"] is None and process["lag_seconds"] is not None:
        return f"{process['lag_seconds']:.1f} s"
    return _number(process["lag"])


def _number(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _last_exit(how: dict[str, Any] | None) -> str:
    if how is None:
        return "-"
    if how["signal"] is not None:
        return f"signal {how['signal']}"
    if how["code"] is not None:
        return f"code {how['code']}"
    return "not started"
