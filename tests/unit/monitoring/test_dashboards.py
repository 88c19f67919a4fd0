"""Dashboards show every declared metric, and nothing that does not exist."""

from collections.abc import Iterator

import pytest

from rsky_pipeline.development.monitoring.dashboards import ROLES, dashboards
from rsky_pipeline.development.monitoring.expressions import DECLARED, RECORDED, names_in
from rsky_pipeline.observability.catalogue import original_stream_metrics, own_metrics

DASHBOARDS = dashboards()


def expressions(name: str) -> Iterator[str]:
    for panel in DASHBOARDS[name]["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


@pytest.mark.parametrize("role", ROLES)
def test_every_metric_of_a_role_is_on_its_dashboard(role: str) -> None:
    shown = {name for expression in expressions(role) for name in names_in(expression)}
    declared = {metric.name for metric in (*own_metrics(role), *original_stream_metrics(role))}
    assert declared - shown == set()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_query_what_exists_and_do_not_overlap(name: str) -> None:
    for expression in expressions(name):
        assert names_in(expression) <= DECLARED.keys() | RECORDED
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
