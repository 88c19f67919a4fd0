"""Start and stop order follow from what the roles consume and produce."""

import pytest

from rsky_pipeline.configuration.topology import RoleDeclaration, start_order, stop_order


def test_producers_start_first_and_consumers_stop_first() -> None:
    assert start_order() == ("ingester", "backfiller", "indexer")
    assert stop_order() == ("indexer", "backfiller", "ingester")
    assert start_order(["indexer", "ingester"]) == ("ingester", "indexer")
    assert stop_order({"backfiller"}) == ("backfiller",)


def test_a_circle_has_no_order() -> None:
    circle = (RoleDeclaration("a", ("x",), ("y",)), RoleDeclaration("b", ("y",), ("x",)))
    with pytest.raises(ValueError, match="circle"):
        start_order(declared=circle)
