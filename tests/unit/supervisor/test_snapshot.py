"""What `status` makes of what the workers say."""

import json
from dataclasses import replace
from typing import Any

import pytest
import trio

from rsky_pipeline.cli.status import merged
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.development.documents import ROOT
from rsky_pipeline.runtime.health_document import read_health
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor import status
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.children import worker_policy
from rsky_pipeline.supervisor.machine import Phase
from rsky_pipeline.supervisor.spawn import ChildProcess


def never(_: bool) -> ChildProcess:
    raise OSError("nothing is started here")


async def test_a_degraded_worker_is_ready_and_not_healthy() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.state = replace(child.state, phase=Phase.READY)

    def look() -> tuple[bool, str | None]:
        document = status.document(
            state="running", roles=["ingester"], children=[child], began=0.0, run_dir="/run"
        )
        return document["healthy"], document["processes"][0]["trouble"]

    child.health = read_health({"trouble": None, "degraded": None})
    assert look() == (True, None)
    child.health = read_health({"trouble": None, "degraded": "no relay is connected"})
    assert look() == (False, "no relay is connected")
    child.health = read_health({"trouble": "stuck", "degraded": "no relay is connected"})
    assert look() == (False, "stuck")
    child.health = read_health({"degraded": "no relay is connected", "problem": "cursor too high"})
    assert look() == (False, "no relay is connected; cursor too high")


async def test_a_stopped_worker_has_no_figures_of_its_last_life() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.health = read_health({"rate": 5.0, "degraded": "no relay is connected", "pending": 0})
    found = status.child_document(child)
    assert (found["state"], found["rate"], found["trouble"]) == ("stopped", None, None)
    assert found["health"]["pending"] == 0  # a stop is verified with it


async def test_a_worker_that_does_not_progress_is_started_again() -> None:
    await trio.lowlevel.checkpoint()
    child = ChildDriver("indexer", 1, worker_policy(Settings()), never)
    child._heard({"event": "status", "health": {"stalled": None, "trouble": "a while"}})
    with pytest.raises(trio.WouldBlock):
        child._receive.receive_nowait()
    reason = "no progress of applying for 301 s"
    child._heard({"event": "status", "health": {"stalled": reason}})
    assert child._receive.receive_nowait() == m.Unresponsive(reason)


def conforms(value: object, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Check a value against the part of JSON Schema that the published one uses."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(conforms(value, each, root) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            if not isinstance(value, dict):
                return False
            known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
            missing = set(schema.get("required", ())) - set(value)
            assert not missing, missing
            for name, each in value.items():
                form = known.get(name, other)
                assert not form or conforms(each, form, root), (name, each)
            return True
        case "array":
            return isinstance(value, list) and all(
                conforms(each, schema["items"], root) for each in value
            )
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case kind:
            types = {"string": str, "boolean": bool, "null": type(None), "integer": int}
            return isinstance(value, types[kind]) and isinstance(value, bool) == (kind == "boolean")


async def test_the_document_is_of_the_published_schema() -> None:
    await trio.lowlevel.checkpoint()
    schema = json.loads((ROOT / "docs" / "status.schema.json").read_text())
    child = ChildDriver("ingester", 1, worker_policy(Settings()), never)
    child.state = replace(child.state, phase=Phase.READY, last_exit=m.Exit(code=1))
    child.health = read_health(
        {
            "trouble": "stuck", "degraded": "no relay is connected", "streams": {"label_live": 3},
            "dead_letters": {"label_live": 1}, "raw_dead_letters": {"label_raw": 2},
            "rate": 1.5, "lag": None, "lag_seconds": 0.5,
            "findings": ["oldest label_live", "of_another_version"], "failing": [],
            "cursors": [{"stream": "firehose_live", "host": "a.test", "seq": None}],
        }
    )  # fmt: skip
    stopped = ChildDriver("indexer", 1, worker_policy(Settings()), never)
    found = status.document(
        state="running", roles=["ingester"], children=[child, stopped], began=0.0, run_dir="/run"
    )
    whole = merged([dict(found)])
    assert whole["dead_letters"] == {"label_live": 1, "label_raw": 2}
    assert conforms(whole, schema, schema)
    assert conforms({**merged([]), "problem": "nothing runs"}, schema, schema)
    process = whole["processes"][0]
    assert [each["code"] for each in process["problems"]] == ["unhealthy", "degraded"]
    assert process["findings"][0]["kind"] == "oldest"
    assert process["findings"][0]["subject"] == "label_live"
    assert process["findings"][1] == {
        "kind": "of_another_version", "subject": "", "verdict": "warn", "title": "", "figure": "",
        "remedy": "",
    }  # fmt: skip
    older = {**found, "processes": [dict(each) for each in found["processes"]]}
    for each in older["processes"]:  # type: ignore[attr-defined]
        del each["problems"], each["findings"]
    for name in ("commit", "built_at", "version", "dead_letters", "steps"):
        del older[name]
    assert conforms(merged([older]), schema, schema)
    assert not conforms({**whole, "healthy": "yes"}["healthy"], {"type": "boolean"}, schema)
