"""The findings of a worker in its health document.

The worker writes them; `status`, `verify` and the supervisor read them, so that all have the same
verdict, figure and remedy.

A worker of an older version only names its findings; title and remedy are then those of the rule.
"""

from collections.abc import Iterable, Iterator

from rsky_pipeline.configuration.advice import advised, complete
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.health.rules import (
    ITS_LOG,
    PROCESS,
    RuleVerdict,
    finding_of,
    finding_status,
    rule_of,
)
from rsky_pipeline.runtime.health_document import FindingHealth, HealthDocument

_PASSING = ("starting", "stopping")  # states of a process that are as they should be for a while


def written(verdicts: Iterable[RuleVerdict]) -> list[FindingHealth]:
    """Return findings in the form of the health document."""
    return [
        {
            "finding": finding_of(each.rule), "subject": each.subject,
            "verdict": "fail" if each.status == "fail" else "warn",
            "title": each.rule.title, "figure": complete(each.figure),
            "remedy": complete(each.to_do),
        }
        for each in verdicts
    ]  # fmt: skip


def found(health: HealthDocument) -> list[FindingHealth]:
    """Return the findings that a worker reports, failures first."""
    reports = health.get("reports")
    if reports is None:
        reports = list(_named(health))
    return sorted(reports, key=lambda each: each["verdict"])


def _named(health: HealthDocument) -> Iterator[FindingHealth]:
    """Yield the findings of a worker that reports names only."""
    for text in health.get("findings", ()):
        kind, _, subject = text.partition(" ")
        rule = rule_of(kind)
        failing = text in health.get("failing", ())
        # A store's finding has its reason in the health document, behind the title.
        reasons = [
            each for each in health.get("stores", ()) if rule and each.startswith(rule.title)
        ]
        yield {
            "finding": kind, "subject": subject,
            "verdict": "fail" if finding_status(kind, failing=failing) == "fail" else "warn",
            "title": rule.title if rule else "",
            "figure": "; ".join(reason.partition(": ")[2] for reason in reasons),
            "remedy": rule.remedy.replace("{subject}", subject) if rule else "",
        }  # fmt: skip


def complaint(health: HealthDocument) -> str | None:
    """Return why a worker is not well: its trouble, or the findings that fail; None for none.

    Warnings are no complaint: with them the work goes on as it should.
    """
    if health.get("trouble"):
        return health.get("trouble")
    failing = [described(each) for each in found(health) if each["verdict"] == "fail"]
    if "reports" not in health:  # an older version
        parts = (*health.get("stores", ()), health.get("degraded"), health.get("problem"))
        named = [part for part in parts if part]
        failing = named or failing
    return "; ".join(failing) or None


def described(finding: FindingHealth) -> str:
    """Return title and figure of a finding as one text."""
    subject = f" ({finding['subject']})" if finding["subject"] else ""
    title = f"{finding['title'] or finding['finding']}{subject}"
    return f"{title}: {finding['figure']}" if finding["figure"] else title


def of_process(
    name: str, role: str, state: str, *, wanted: bool = True, reason: str | None = None
) -> FindingHealth | None:
    """Return the finding on a supervised process that is not ready, None for one that is.

    `state` is that of the supervisor; `reason` is why it ended last.
    """
    if state == "ready":
        return None
    start, restart = advised("start", "--role", role), advised("restart", role)
    remedy = f"it is started again by itself; if that goes on, see {ITS_LOG}"
    if role not in ROLE_NAMES:
        remedy = "its supervisor starts it again; its own log is in data_dir"
    elif state == "stopped" and not wanted:
        remedy = f"start it: {start}"
    elif state == "failed":
        remedy = f"correct it ({advised('config', 'check')}), then {restart}"
    elif state == "crashloop":
        remedy = f"see {ITS_LOG}; {restart} tries it at once"
    because = f": {reason}" if reason else ""
    return {
        "finding": PROCESS.name, "subject": name,
        "verdict": "warn" if state in _PASSING else "fail",
        "title": PROCESS.title, "figure": f"{state}{because}", "remedy": remedy,
    }  # fmt: skip
