"""`make docs`: the generated parts of the documentation, made, written and checked.

A generated part of a page stands between two marker lines, so that the prose around it stays with
its writers. `make docs` writes; the tests check. A part is replaced whole, whatever is between its
markers: conflicting versions of a merge too.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rsky_pipeline.cli.exit_codes import MEANINGS
from rsky_pipeline.cli.man import man_page
from rsky_pipeline.cli.output import say
from rsky_pipeline.configuration.report import reference_markdown
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.development.json_schema import status_schema
from rsky_pipeline.development.monitoring.files import files
from rsky_pipeline.development.performance import figures_markdown, sizing_markdown
from rsky_pipeline.health.rules import WATCHED, Rule, finding_of
from rsky_pipeline.observability.catalogue import (
    PROCESSES,
    VITAL,
    Declared,
    finding_metrics,
    original_stream_metrics,
    own_metrics,
    process_metrics,
    stream_metrics,
)

ROOT = Path(__file__).resolve().parents[2]
_SHAPES = ("one supervisor", "a supervisor for each role")  # of the test of outages
_MAX_FIGURE = 200  # characters


def pages() -> Mapping[Path, str]:
    """Return every page that is generated or has generated parts, as it should be.

    Raises ValueError for a page without the markers of a part.
    """
    found = {ROOT / "docs" / "monitoring" / name: text for name, text in files().items()}
    for page, parts in _PARTS.items():
        text = (ROOT / page).read_text()
        for name, make in parts.items():
            text = replaced(text, name, make())
        found[ROOT / page] = text
    found[ROOT / "docs" / "rsky-pipeline.1"] = man_page()
    found[ROOT / "docs" / "status.schema.json"] = status_schema()
    return found


def replaced(page: str, name: str, part: str) -> str:
    """Return a page with a new version of one part. Raises ValueError if it has no such part."""
    begin, end = f"<!-- generated: {name} (make docs) -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"^{re.escape(begin)}$.*?^{re.escape(end)}$", re.DOTALL | re.MULTILINE)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page needs exactly one part between {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{part.strip()}\n{end}", page)


def metrics_table(metrics: Iterable[Declared]) -> str:
    """Return metrics as a Markdown table."""
    rows = [
        f"| {_name(metric)} | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |"
        for metric in metrics
    ]
    return "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *rows])


def _name(metric: Declared) -> str:
    return f"**`{metric.name}`**" if metric.vital else f"`{metric.name}`"


def _vital() -> str:
    rows = [f"| `{name}` | {question} |" for name, question in VITAL.items()]
    return "\n".join(["| name | question |", "|---|---|", *rows])


def _exit_codes() -> str:
    rows = [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def _findings() -> str:
    rows = [
        f"| `{finding_of(rule)}` | {rule.title} | {_verdicts(rule)} | "
        f"{rule.remedy.replace('{subject}', _subject(rule))} |"
        for rule in WATCHED
    ]
    header = ["| finding | meaning | verdict | remedy |", "|---|---|---|---|"]
    return "\n".join([*header, *rows])


def _subject(rule: Rule) -> str:
    return "STREAM" if rule.of_stream else "LOG" if rule.of_bsync else "HOST"


def _verdicts(rule: Rule) -> str:
    limits = (rule.limits, rule.history or rule.limits)
    words = []
    if any(each.warn is not None for each in limits):
        words.append("warns")
    if any(each.fail is not None for each in limits):
        words.append("fails")
    return ", ".join(words)


def _outages() -> str:
    """Return the table of outages from the results of their test (`make outages`)."""
    results = json.loads((ROOT / "docs" / "outages.json").read_text())
    lines = [f"Measured on {results['date']}, on commit {results['commit']}.", ""]
    header = ("outage", "finding", "`status`", "`/healthz`", "metrics", "`verify`", "alert",
              "remedy that was carried out", "all green after")  # fmt: skip
    lines += [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, shapes in results["outages"].items():
        rows = [shapes.get(shape) for shape in _SHAPES]
        first = next(row for row in rows if row is not None)
        alert = f"`{first['alert']}` {_seconds(rows, 'alert_seconds')}" if first["alert"] else "-"
        asked = [_seconds(rows, channel) for channel in ("status", "healthz", "metrics", "verify")]
        cells = (name, f"`{first['finding']}` {first['verdict']}s", *asked, alert, first["done"],
                 _seconds(rows, "green"))  # fmt: skip
        lines.append(f"| {' | '.join(each.replace('|', '/') for each in cells)} |")
    lines += [
        "",
        "What `status` and `verify` show then (figures of the run with one supervisor):",
        "",
    ]
    for name, shapes in results["outages"].items():
        row = next(iter(shapes.values()))
        if row["title"]:
            figure = shorten(row["figure"], _MAX_FIGURE, placeholder=" ...")
            text = f"{row['title']}: {figure}; to do: {row['remedy']}".replace("|", "/")
            lines.append(f"- **{name}**: {text}")
    return "\n".join(lines)


def _seconds(rows: Sequence[Mapping[str, Any] | None], name: str) -> str:
    """Return the seconds with one supervisor, and with three; - where that was not measured."""
    values = (None if row is None else row[name] for row in rows)
    return " / ".join("-" if value is None else f"{value:.0f} s" for value in values)


def _official() -> str:
    """Return the figures of `make official`: rows, answers, and differences by kind."""
    results = json.loads((ROOT / "docs" / "official.json").read_text())
    releases: Mapping[str, Any] = results["releases"]
    lines = [f"Measured on {results['date']}, on commit {results['commit']}.", ""]
    lines += [f"| | {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for title, figure in _OFFICIAL_FIGURES.items():
        cells = [figure(each) for each in releases.values()]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    counts = [(_by_kind(each["live"]), _by_kind(each["history"]), _by_kind(each["answers"]))
              for each in releases.values()]  # fmt: skip
    names = sorted({kind for each in counts for part in each for kind in part})
    header = [f"{release}: live, history, answers" for release in releases]
    lines += ["", f"| differences of this kind | {' | '.join(header)} |"]
    lines.append("|---" * (len(releases) + 1) + "|")
    for name in names:
        cells = [", ".join(f"{part.get(name, 0):,}" for part in each) for each in counts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_kind(parts: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows or answers differ, by kind."""
    found: dict[str, int] = {}
    for part in parts.values():
        for kind, number in part["kinds"].items():
            found[kind] = found.get(kind, 0) + number
    return found


def _rows(name: str) -> Callable[[Mapping[str, Any]], str]:
    def figure(figures: Mapping[str, Any]) -> str:
        tables = figures[name].values()
        official, ours = (sum(table[side] for table in tables) for side in ("official", "ours"))
        return f"{official:,} / {ours:,} in {len(tables)} tables"

    return figure


def _answered(figures: Mapping[str, Any]) -> str:
    answers = figures["answers"].values()
    asked, errors = (sum(each[name] for each in answers) for name in ("asked", "equal errors"))
    return f"{asked:,} of {len(answers)} endpoints; {errors:,} are equal errors"


def _compared(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda figures: (
        "{official:,} / {ours:,}".format_map(figures[name]) if name in figures else ""
    )


def _listed(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda figures: ", ".join(
        f"{key} {value:,}" for key, value in figures.get(name, {}).items()
    )


_OFFICIAL_FIGURES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "what people did": _listed("events"),
    "killed meanwhile": _listed("kills"),
    "rows officially / ours, live": _rows("live"),
    "rows officially / ours, from history": _rows("history"),
    "questions": _answered,
    "labels officially / ours, after the labeler's key changed": _listed("labels"),
    "account life": _listed("account life"),
    "accounts of did:web": _listed("did:web"),
    "rows officially / ours, with them": _compared("live, with did:web"),
    "a repo imported into an account": _listed("imported"),
    "rows officially / ours, live, with it": _compared("live, with an import"),
    "a PDS that lost its sequencer": _listed("lost sequencer"),
    "rows officially / ours, after that": _compared("live, after a lost sequencer"),
    "requests to PDSes with rate limits": _listed("rate limits"),
    "rows officially / ours, all from history by these": _compared("history, with rate limits"),
    "migrations that the official migrator still made, by `db init`": _listed("migrations"),
}


def _originals() -> Iterator[Declared]:
    for role in ROLE_NAMES:
        yield from original_stream_metrics(role)


def _own(process: str) -> Callable[[], str]:
    return lambda: metrics_table(own_metrics(process))


def _measured() -> Mapping[str, Any]:
    """Return the last run of `make bench JSON=docs/performance.json`."""
    found: Mapping[str, Any] = json.loads((ROOT / "docs" / "performance.json").read_text())
    return found


_PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "docs/configuration.md": {"settings": reference_markdown, "exit codes": _exit_codes},
    "docs/troubleshooting.md": {"findings": _findings},
    "docs/outages.md": {"outages": _outages},
    "docs/performance.md": {
        "figures": lambda: figures_markdown(_measured()),
        "sizing": lambda: sizing_markdown(_measured()),
    },
    "docs/appview-parity.md": {"official network": _official},
    "docs/metrics.md": {
        "vital metrics": _vital,
        **{f"{process} metrics": _own(process) for process in PROCESSES},
        "stream metrics": lambda: metrics_table(stream_metrics()),
        "original stream metrics": lambda: metrics_table(_originals()),
        "finding metrics": lambda: metrics_table(finding_metrics()),
        "process metrics": lambda: metrics_table(process_metrics()),
    },
}


def main() -> None:
    """Write the pages that changed, and print their names."""
    for path, text in pages().items():
        if path.is_file() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        say(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
