"""Grafana panels and rows: only what our dashboards need of its JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: each query with its legend (a label in braces, or a text)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"  # or stat
    help: str = ""
    red_from: float | None = None
    red_below: float | None = None

    def document(self, number: int, position: dict[str, int]) -> dict[str, Any]:
        """Return the panel as Grafana reads it."""
        document: dict[str, Any] = {
            "id": number,
            "title": self.title,
            "type": self.kind,
            "description": self.help,
            "datasource": SOURCE,
            "gridPos": position,
            "fieldConfig": {"defaults": {"unit": self.unit, "thresholds": self._thresholds()}},
            "targets": [
                {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr,
                 "legendFormat": legend}
                for index, (expr, legend) in enumerate(self.queries)
            ],
        }  # fmt: skip
        if self.kind == "stat":
            document["options"] = {"colorMode": "background", "graphMode": "area"}
        return document

    def _thresholds(self) -> dict[str, Any]:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.red_from is not None:
            steps.append({"color": "red", "value": self.red_from})
        if self.red_below is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": self.red_below}]
        return {"mode": "absolute", "steps": steps}


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels, `columns` beside each other."""

    title: str
    panels: Sequence[Panel]
    columns: int = 3
    height: int = 7


def dashboard(uid: str, title: str, rows: Iterable[Row]) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it."""
    placed: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        if not row.panels:
            continue
        placed.append(
            {"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False,
             "panels": [], "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}}
        )  # fmt: skip
        top += 1
        width = WIDTH // row.columns
        for index, panel in enumerate(row.panels):
            line, column = divmod(index, row.columns)
            position = {"x": column * width, "y": top + line * row.height, "w": width,
                        "h": row.height}  # fmt: skip
            placed.append(panel.document(len(placed) + 1, position))
        top += -(-len(row.panels) // row.columns) * row.height
    return {
        "uid": uid,
        "title": title,
        "tags": ["rsky-pipeline"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource",
                 "query": "prometheus", "current": {}, "hide": 0}
            ]
        },
        "annotations": {"list": []},
        "panels": placed,
    }  # fmt: skip
