"""Producers are ready before consumers start; consumers are gone before producers are told."""

import json
import re
import signal

import pytest

from tests.integration.supervisor.pipeline import Pipeline, until


def test_each_role_is_ready_before_the_next_is_started(pipeline: Pipeline) -> None:
    pipeline.behave(ingester={"ready_after": 0.6}, backfiller={"ready_after": 0.4})
    pipeline.up()
    assert pipeline.trace() == [
        *("ingester-1 began", "ingester-1 ready"),
        *("backfiller-1 began", "backfiller-1 ready"),
        *("indexer-1 began", "indexer-1 ready"),
    ]


def test_stop_drains_consumers_first_and_prints_each_step(pipeline: Pipeline) -> None:
    drains = {role: {"drain_seconds": 0.4} for role in ("ingester", "backfiller", "indexer")}
    pipeline.behave(**drains)
    running = pipeline.up("ingester", "backfiller", "indexer", "indexer_workers=2")
    result = pipeline.command("stop", "--ordered")
    assert result.exit_code == 0, result.output
    told = "".join(line for line in result.output.splitlines(True) if line[0] != " ")
    assert re.fullmatch(
        r"indexer \(2 workers\) drained and stopped \(\d\.\d s, 0 pending\)\n"
        r"backfiller drained and stopped \(\d\.\d s, 0 pending\)\n"
        r"ingester drained and stopped \(\d\.\d s, 0 pending\)\n",
        told,
    )
    assert running.ended() == 0
    after = pipeline.trace()[-8:]
    assert sorted(after[:2]) == ["indexer-1 stopping", "indexer-2 stopping"]
    assert sorted(after[2:4]) == ["indexer-1 drained", "indexer-2 drained"]
    assert after[4:] == [
        *("backfiller-1 stopping", "backfiller-1 drained"),
        *("ingester-1 stopping", "ingester-1 drained"),
    ]


def test_ctrl_c_is_an_ordered_stop(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 0.3})
    running = pipeline.up()
    running.signal(signal.SIGINT)
    assert running.ended() == 0
    drained = [line for line in pipeline.trace() if line.endswith("drained")]
    assert drained == ["indexer-1 drained", "backfiller-1 drained", "ingester-1 drained"]
    assert pipeline.nobody_runs()


def test_a_hang_up_reopens_the_log_and_stops_nothing(pipeline: Pipeline) -> None:
    running = pipeline.up()
    log = running._log
    old = log.rename(log.with_name("rotated"))
    running.signal(signal.SIGHUP)
    until(lambda: log.exists() and "log file reopened" in log.read_text(), "the log is reopened")
    assert running.process.poll() is None
    # The workers follow by themselves.
    running.signal(signal.SIGTERM)
    assert running.ended() == 0
    assert "indexer drained and stopped" in log.read_text()
    assert "drained and stopped" not in old.read_text()


def test_a_second_signal_skips_the_draining(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 25})
    running = pipeline.up()
    running.signal(signal.SIGTERM)
    until(lambda: "indexer-1 stopping" in pipeline.trace(), "the indexer is told to stop")
    running.signal(signal.SIGTERM)
    assert running.ended(10) == 0
    assert "indexer-1 hurried" in pipeline.trace()


def test_a_third_signal_kills_and_says_so(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 60, "deaf": True})
    running = pipeline.up()
    for what in ("stopping in order", "skipping the draining", "WARNING killing"):
        running.signal(signal.SIGTERM)
        running.until_logged(what)
    assert running.ended(10) == 5
    assert running.logged(r"indexer did not drain in time and was killed \(\d\.\d s")
    ends = [line for line in running.log.splitlines() if "drain" in line and "stopping" not in line]
    assert [end.split()[3] for end in ends if "skipping" not in end] == [
        *("indexer", "backfiller", "ingester")
    ]


def test_stop_with_a_timeout_forces_and_reports(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 60, "deaf": True})
    running = pipeline.up()
    result = pipeline.command("stop", "--timeout", "0.2")
    assert result.exit_code == 5
    assert result.output.startswith("indexer did not drain in time and was killed")
    assert running.ended() == 5


@pytest.mark.parametrize("drain_seconds", [0, 60])
def test_stop_with_json_takes_the_same_path(pipeline: Pipeline, drain_seconds: int) -> None:
    behaviour = {"drain_seconds": drain_seconds, "deaf": bool(drain_seconds)}
    seen = {}
    for options in ((), ("--json",)):
        pipeline.behave(indexer=behaviour)
        running = pipeline.up()
        limit = ("--timeout", "0.2") if drain_seconds else ()
        result = pipeline.command("stop", *limit, *options)
        assert running.ended() == result.exit_code
        lines = result.stdout.splitlines()
        if options:
            document = json.loads(result.stdout)
            assert (document["ok"], document["forced"]) == (True, bool(drain_seconds))
            lines = [line for step in document["steps"] for line in step["lines"]]
            told = [line.removeprefix("rsky-pipeline: ") for line in result.stderr.splitlines()]
            assert told == lines
        seen[options] = result.exit_code, [line.split()[0] for line in lines]
    assert seen[()] == seen["--json",]
    assert seen[()] == (5 if drain_seconds else 0, ["indexer", "backfiller", "ingester"])


def test_a_stop_while_starting_stops(pipeline: Pipeline) -> None:
    pipeline.behave(ingester={"ready_after": 60})
    running = pipeline.start()
    until(lambda: "ingester-1 began" in pipeline.trace(), "the ingester began")
    running.signal(signal.SIGTERM)
    running.until_logged("indexer was not running")
    running.signal(signal.SIGTERM)  # the double does not listen before it is ready
    running.until_logged("skipping the draining")
    running.signal(signal.SIGTERM)
    assert running.ended() == 5
    assert pipeline.trace() == ["ingester-1 began"]


@pytest.mark.parametrize("options", [("--ordered",), ()])
def test_several_supervisors_share_a_run_directory(
    pipeline: Pipeline, options: tuple[str, ...]
) -> None:
    supervisors = [pipeline.up(role) for role in ("ingester", "backfiller", "indexer")]
    names = sorted(path.name for path in pipeline.run_dir.glob("control-*"))
    assert names == ["control-backfiller.sock", "control-indexer.sock", "control-ingester.sock"]
    status = pipeline.command("status")
    assert status.exit_code == 0
    assert all(f"{role}-1" in status.output for role in ("ingester", "backfiller", "indexer"))
    result = pipeline.command("stop", *options)
    assert result.exit_code == 0
    stopped = [line.split()[0] for line in result.output.splitlines() if line[0] != " "]
    assert stopped == ["indexer", "backfiller", "ingester"]
    assert [running.ended() for running in supervisors] == [0, 0, 0]
    assert pipeline.command("stop").exit_code == 3


def test_stopping_one_role_of_a_supervisor_leaves_the_others(pipeline: Pipeline) -> None:
    from rsky_pipeline.supervisor import client

    running = pipeline.up()
    [supervisor] = client.find(pipeline.run_dir)
    steps: list[str] = []
    client.ask(supervisor.path, "stop", on_step=steps.append, wait_seconds=20, roles=["indexer"])
    assert len(steps) == 1
    assert steps[0].startswith("indexer drained and stopped")
    assert pipeline.child("indexer-1")["state"] == "stopped"
    assert pipeline.child("ingester-1")["state"] == "ready"
    assert running.process.poll() is None
    # Started again by an order; the rest goes down with the last role.
    client.ask(supervisor.path, "restart", wait_seconds=20, roles=["indexer"])
    assert pipeline.child("indexer-1")["state"] == "ready"


def test_roles_stop_and_start_under_a_supervisor_that_stays(pipeline: Pipeline) -> None:
    running = pipeline.up()
    stopped = pipeline.command("stop", "--role", "indexer", "--role", "backfiller", "--json")
    assert stopped.exit_code == 0, stopped.output
    steps = json.loads(stopped.stdout)["steps"]
    assert [(step["action"], step["role"], step["ok"]) for step in steps] == [
        ("stop", "indexer", True),
        ("stop", "backfiller", True),
    ]
    assert pipeline.child("ingester-1")["state"] == "ready"
    started = pipeline.command("start", "--json")
    assert started.exit_code == 0, started.output
    assert [step["role"] for step in json.loads(started.stdout)["steps"]] == [
        *("ingester", "backfiller", "indexer")
    ]
    assert pipeline.child("indexer-1")["state"] == "ready"
    assert running.process.poll() is None


def test_an_ordered_restart_keeps_the_supervisor(pipeline: Pipeline) -> None:
    running = pipeline.up()
    result = pipeline.command("restart", "--ordered")
    assert result.exit_code == 0, result.output
    ends = [line for line in pipeline.trace() if line.endswith(("drained", "ready"))]
    assert ends[3:] == [
        *("indexer-1 drained", "backfiller-1 drained", "ingester-1 drained"),
        *("ingester-1 ready", "backfiller-1 ready", "indexer-1 ready"),
    ]
    result = pipeline.command("restart", "--ordered", "--rolling")
    assert result.exit_code == 0, result.output
    ends = [line for line in pipeline.trace() if line.endswith(("drained", "ready"))]
    assert ends[9:] == [
        *("indexer-1 drained", "indexer-1 ready", "backfiller-1 drained", "backfiller-1 ready"),
        *("ingester-1 drained", "ingester-1 ready"),
    ]
    assert running.process.poll() is None
    assert pipeline.command("restart").exit_code == 2


def test_an_ordered_stop_reports_what_it_forced(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 60, "deaf": True})
    pipeline.up()
    result = pipeline.command("stop", "--ordered", "--timeout", "0.2", "--json")
    assert result.exit_code == 5
    forced = {step["role"]: step["forced"] for step in json.loads(result.stdout)["steps"]}
    assert (forced["indexer"], forced["backfiller"], forced["ingester"]) == (True, False, False)
    assert pipeline.nobody_runs()
