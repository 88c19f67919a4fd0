"""Are the workers there, do they serve every declared metric, and what do they complain about?"""

from collections.abc import Iterator, Sequence

from rsky_pipeline.observability.catalogue import Declared, declared
from rsky_pipeline.observability.findings import KINDS
from rsky_pipeline.operations.scrape import Scrape
from rsky_pipeline.operations.verification.report import Check, passed

_NAMED = 5  # missing metrics that are named in the figure


def check_workers(scrapes: Sequence[Scrape], roles: Sequence[str]) -> Iterator[Check]:
    """Check that every role runs, answers and is well."""
    for role in roles:
        own = [scrape for scrape in scrapes if scrape.target.role == role]
        if not own:
            yield Check(f"process:{role}", "fail", "no worker is running",
                        f"start it: `rsky-pipeline run --role {role}` or its unit")  # fmt: skip
        for scrape in own:
            yield _process(scrape)
            if scrape.error is None:
                yield check_metrics(scrape)
                yield _findings(scrape)


def _process(scrape: Scrape) -> Check:
    name = f"process:{scrape.target.name}"
    if scrape.error is not None:
        return Check(name, "fail", scrape.error,
                     "see `rsky-pipeline status` and the worker's log")  # fmt: skip
    state, trouble = scrape.health.get("state"), scrape.health.get("trouble")
    if trouble:
        return Check(name, "fail", f"{state}: {trouble}", "see the worker's log")
    if state != "ready":
        return Check(name, "fail", f"is {state}", "wait until it is ready, or see its log")
    uptime = float(scrape.health.get("uptime_seconds") or 0.0)
    return passed(name, f"ready for {uptime:,.0f} s, port {scrape.target.port} answers", uptime)


def _findings(scrape: Scrape) -> Check:
    """Tell what the worker finds wrong by itself."""
    name = f"findings:{scrape.target.name}"
    found = [str(item) for item in scrape.health.get("findings") or ()]
    if not found:
        return passed(name, "it finds nothing wrong", 0)
    kinds = {item.partition(" ")[0] for item in found}
    remedies = "; ".join(KINDS[kind].remedy for kind in sorted(kinds & KINDS.keys()))
    severe = any(KINDS[kind].severe for kind in kinds & KINDS.keys())
    return Check(name, "fail" if severe else "warn", ", ".join(found), remedies, len(found))


def check_metrics(scrape: Scrape) -> Check:
    """Check that a worker exports every metric that its role declares."""
    name = f"metrics:{scrape.target.name}"
    metrics = declared(scrape.target.role)
    missing = [each.name for each in metrics.values() if not _is_there(each, scrape)]
    if not missing:
        return passed(name, f"all {len(metrics)} declared metrics are exported", len(metrics))
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return Check(
        name, "fail", f"{len(missing)} of {len(metrics)} declared metrics are missing: {named}",
        "the worker is of another version than this command, or was built wrongly: deploy again",
        len(missing),
    )  # fmt: skip


def _is_there(metric: Declared, scrape: Scrape) -> bool:
    suffix = "_count" if metric.kind in {"histogram", "summary"} else ""
    return bool(scrape.samples.get(f"{metric.name}{suffix}"))
