"""`rsky-pipeline status`: processes, rates, lag and streams of a running pipeline."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from rsky_pipeline.cli.command import Invocation, operator_command
from rsky_pipeline.cli.exit_codes import ExitCode
from rsky_pipeline.cli.output import duration, line, print_table, say
from rsky_pipeline.configuration.topology import ROLE_NAMES

if TYPE_CHECKING:
    from rsky_pipeline.configuration.settings import Settings
    from rsky_pipeline.health.rules import RuleVerdict
    from rsky_pipeline.runtime.further_workers import FurtherWorker
    from rsky_pipeline.supervisor.status_document import FindingStatus, ProcessStatus

HEADER = (
    *("PROCESS", "PID", "STATE", "UPTIME", "RESTARTS", "RATE/s", "LAG", "MEMORY", "PORT"),
    "LAST EXIT",
)


@operator_command(name="status")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES),
              help="Role that has to run here, may be repeated; else expected_roles.")  # fmt: skip
def command(run: Invocation, roles: tuple[str, ...]) -> int:
    """Show processes, rates, lag, stream lengths, and what fails, with its remedy.

    Exit codes: 0 everything is ready and nothing fails, 1 something does, 3 nothing is running, 4
    no answer. Warnings do not count.
    """
    from rsky_pipeline.embedded.locations import data_directory
    from rsky_pipeline.health.rules import DEPLOYMENT, judged
    from rsky_pipeline.operations.deployment.journal import interrupted
    from rsky_pipeline.runtime.further_workers import further_workers
    from rsky_pipeline.supervisor import client
    from rsky_pipeline.supervisor.errors import NoAnswerError, NotRunningError

    entry = interrupted(data_directory(run.settings))
    deployment = {"deployment": entry.describe()} if entry else {}
    further = [_further(run.settings, each) for each in further_workers(run.run_directory)]
    try:
        documents = [each.status for each in client.find(run.run_directory)]
    except (NotRunningError, NoAnswerError) as error:
        documents = []
        if not further or isinstance(error, NoAnswerError):
            run.answer({**merged([]), **deployment, "problem": str(error)}, lambda: None)
            if entry:
                say(entry.describe())
            raise
    found = merged(documents, further, roles or run.settings.expected_roles)
    if entry:
        verdict = judged(DEPLOYMENT, "", 1, entry.describe().partition(":")[0])
        found["findings"] += _written([verdict])
        found["healthy"] = False
    run.answer({**found, **deployment}, lambda: show(documents, found))
    return ExitCode.OK if found["healthy"] else ExitCode.FAILED


def merged(
    documents: list[dict[str, Any]],
    further: "Sequence[ProcessStatus]" = (),
    roles: Sequence[str] = (),
) -> dict[str, Any]:
    """Join the documents of several supervisors; the result is a `PipelineStatus`.

    `further` are the workers without a supervisor, `roles` those that have to run here.
    """
    from rsky_pipeline.supervisor.status_document import SCHEMA_VERSION

    processes = [
        {"problems": [], "findings": [], **process}  # an older version does not know these
        for process in (*(each for one in documents for each in one["processes"]), *further)
    ]
    here = {process["role"] for process in processes}
    missing = _absent([role for role in roles if role not in here])
    well = [document["healthy"] for document in documents]
    well += [not each["trouble"] for each in further]
    return {
        "schema_version": documents[0]["schema_version"] if documents else SCHEMA_VERSION,
        "healthy": bool(well) and all(well) and not missing,
        "roles": sorted({role for document in documents for role in document["roles"]}),
        "processes": processes,
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
        "findings": _written(missing),
    }


def show(documents: list[dict[str, Any]], together: dict[str, Any] | None = None) -> None:
    """Print tables for people; `together` are the merged documents, with what else there is."""
    together = together or merged(documents)
    for document in documents:
        roles = ", ".join(document["roles"])
        uptime = duration(document["uptime_seconds"])
        line(f"{document['state']}: {roles} (pid {document['pid']}, up {uptime})")
    line()
    print_table(HEADER, [_row(process) for process in together["processes"]])
    for text in troubles(together):
        name, _, rest = text.partition(": ")
        line(f" {rest}", label=f"{name}:", colour="yellow" if rest.startswith("warn") else "red")
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
    if blocks := max(
        (each["health"].get("blocks", 0) for each in together["processes"]), default=0
    ):
        line(f"blocked: {blocks:,} accounts, hosts and collections; see `rsky-pipeline block list`")


def _absent(roles: Sequence[str]) -> "list[RuleVerdict]":
    """Return the verdicts on roles that have no worker here."""
    if not roles:
        return []  # most often, and then no client of a store is imported
    from rsky_pipeline.operations.scrape import absent

    return [absent(role) for role in roles]


def _written(verdicts: "Sequence[RuleVerdict]") -> "list[FindingStatus]":
    if not verdicts:
        return []  # as above
    from rsky_pipeline.runtime.findings import written
    from rsky_pipeline.supervisor.status import finding_status

    return [finding_status(each) for each in written(verdicts)]


def troubles(together: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each trouble and finding, with its remedy; failures come first."""
    for process in together["processes"]:
        findings = process["findings"]
        failing = any(each["verdict"] == "fail" for each in findings)
        hangs = bool((process["health"] or {}).get("trouble"))
        if process["trouble"] and process["trouble"] != "starting" and (hangs or not failing):
            yield f"{process['name']}: {process['trouble']}"
        for each in findings:
            yield f"{process['name']}: {_finding(each)}"
    for each in together["findings"]:
        yield f"{each['subject'] or each['kind']}: {_finding(each)}"


def _finding(finding: dict[str, Any]) -> str:
    name = f"{finding['kind']} {finding['subject']}".strip()
    word = "failure" if finding["verdict"] == "fail" else "warning"
    if not finding["title"]:
        return f"{word}: {name}: unknown finding"
    figure = f": {finding['figure']}" if finding.get("figure") else ""
    to_do = f"; to do: {finding['remedy']}" if finding["remedy"] else ""
    return f"{word}: {name}: {finding['title']}{figure}{to_do}"


def _further(settings: "Settings", worker: "FurtherWorker") -> "ProcessStatus":
    """Return the status of a worker without a supervisor, as it reports itself."""
    from http.client import HTTPException

    from rsky_pipeline.operations.scrape import healthz
    from rsky_pipeline.runtime.findings import complaint, found
    from rsky_pipeline.runtime.health_document import HealthDocument
    from rsky_pipeline.supervisor.status import finding_status, resident_bytes

    try:
        health = healthz(settings, worker.port)
        alive = health.get("pid") == worker.pid
        problem = f"port {worker.port} is another process's"
    except (OSError, ValueError, HTTPException) as error:
        health, alive = HealthDocument(), False
        problem = f"it does not answer on port {worker.port}: {error}"
    state: Any = health.get("state", "stopped")  # a document's own word
    if not alive:
        health = HealthDocument()
        state, problem = _gone(worker, problem)
    return {
        "name": worker.name, "role": worker.role, "instance": worker.instance, "kind": "worker",
        "pid": worker.pid if alive else None, "state": state, "state_seconds": 0.0, "wanted": True,
        "uptime_seconds": health.get("uptime_seconds"), "restarts": 0, "kills": 0,
        "crash_looping": False, "last_exit": None, "metrics_port": worker.port,
        "rss_bytes": resident_bytes(worker.pid) if alive else None, "rate": health.get("rate"),
        "lag": health.get("lag"), "lag_seconds": health.get("lag_seconds"),
        "trouble": complaint(health) if alive else problem, "problems": [],
        "findings": [finding_status(each) for each in found(health)], "health": health,
    }  # fmt: skip


def _gone(worker: "FurtherWorker", problem: str) -> tuple[str, str]:
    """Return state and trouble of a worker that does not answer: systemd may have given it up."""
    from rsky_pipeline.runtime.errors import UnavailableError
    from rsky_pipeline.systemd.systemctl import Systemd, is_running

    name = f"rsky-{worker.role}@{worker.instance}.service"
    try:
        unit = Systemd().show(name) if is_running() else None
    except UnavailableError:
        unit = None
    if unit is not None and unit.load == "loaded" and unit.active == "failed":
        how = unit.end or unit.result
        return "failed", (
            f"systemd gave {name} up ({how}); to do: see `journalctl -u {name}`, then "
            f"`systemctl start {name}`"
        )
    to_do = f"start it again, or remove {worker.note} if it is not to run here"
    return "stopped", f"{problem}; to do: {to_do}"


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
