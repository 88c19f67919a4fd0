"""What happens when workers and stores die, loop, hang, or cannot run at all."""

import json
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from rsky_pipeline.runtime.lock import acquire
from rsky_pipeline.supervisor import child as child_module
from rsky_pipeline.supervisor import machine as m
from rsky_pipeline.supervisor.child import ChildDriver
from rsky_pipeline.supervisor.machine import Phase, Policy, StopStep
from rsky_pipeline.supervisor.spawn import ChildProcess, spawn_worker
from tests.integration.supervisor.pipeline import Pipeline, until
from tests.integration.supervisor.supervisor_double import PROGRAM, settings_for
from tests.stores import redis_client


def test_a_killed_worker_comes_back(pipeline: Pipeline) -> None:
    pipeline.up()
    before = pipeline.child("indexer-1")
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: pipeline.child("indexer-1")["restarts"] == 1, "a restart")
    until(lambda: pipeline.child("indexer-1")["state"] == "ready", "ready again")
    after = pipeline.child("indexer-1")
    assert after["pid"] != before["pid"]
    assert after["last_exit"] == {"code": None, "signal": 9, "reason": None}
    assert pipeline.child("ingester-1")["restarts"] == 0


@pytest.mark.slow
def test_a_crash_loop_is_visible_and_goes_on(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"exit_after": 0, "exit_code": 9})
    running = pipeline.start()
    running.until_logged("ERROR +crashloop", seconds=60)
    status = pipeline.child("indexer-1")
    assert status["state"] == "crashloop"
    assert status["crash_looping"] is True
    assert status["last_exit"]["code"] == 9
    assert status["restarts"] >= 4
    assert pipeline.child("ingester-1")["state"] == "ready"
    result = pipeline.command("status")
    assert result.exit_code == 1
    assert "crashloop" in result.output
    port = running.log.split("port=")[1].split()[0]  # the supervisor's own comes first
    looping = b'rsky_process_crash_looping{process="indexer-1",role="indexer"} 1.0'
    until(lambda: looping in fetch(int(port), "/metrics")[1], "the metric of the crash loop")
    metrics = fetch(int(port), "/metrics")[1].decode()
    assert 'rsky_process_up{process="ingester-1",role="ingester"} 1.0' in metrics
    assert fetch(int(port), "/healthz")[0] == 503
    # An operator's restart starts at once and with a clean slate.
    pipeline.behave()
    assert pipeline.command("restart", "indexer").exit_code == 0
    assert pipeline.child("indexer-1")["crash_looping"] is False


@pytest.mark.slow
def test_a_crash_loop_fails_a_start_with_its_reason(pipeline: Pipeline) -> None:
    pipeline.up()
    assert pipeline.command("stop", "--role", "indexer").exit_code == 0
    pipeline.behave(indexer={"exit_after": 0, "exit_code": 9})
    result = pipeline.command("start", "--role", "indexer")  # not after ready_timeout_seconds
    assert result.exit_code == 1
    assert "indexer-1 ends again and again: exit code 9" in result.output
    assert pipeline.child("ingester-1")["state"] == "ready"


def test_a_configuration_error_is_final(pipeline: Pipeline) -> None:
    pipeline.behave(backfiller={"bad_configuration": True})
    running = pipeline.start()
    assert running.ended() == 78
    assert running.logged(
        "cannot start: backfiller-1 cannot run: exit code 78: relay_hosts: there is no such relay"
    )
    assert running.logged("ingester drained and stopped")
    assert not any(line.startswith("indexer") for line in pipeline.trace())


def test_restart_replaces_workers_one_at_a_time(pipeline: Pipeline) -> None:
    pipeline.behave(indexer={"drain_seconds": 0.1})
    pipeline.up("indexer", "indexer_workers=2")
    began = len(pipeline.trace())
    result = pipeline.command("restart", "indexer")
    assert result.exit_code == 0
    restarted = [line for line in result.output.splitlines() if "restarted (" in line]
    assert [line.split()[0] for line in restarted] == ["indexer-1", "indexer-2"]
    steps = [line for line in pipeline.trace()[began:] if not line.endswith("began")]
    assert steps == [
        f"indexer-{number} {what}" for number in (1, 2) for what in ("stopping", "drained", "ready")
    ]
    assert pipeline.child("indexer-1")["last_exit"]["code"] == 0
    assert pipeline.command("restart", "ingester").exit_code == 3
    assert pipeline.command("restart", "relay").exit_code == 2


@pytest.mark.parametrize("command", [("indexer",), ("--ordered",), ("--ordered", "--rolling")])
def test_a_restart_applies_the_configuration(pipeline: Pipeline, command: tuple[str, ...]) -> None:
    pipeline.up()
    pipeline.configure(indexer_batch_size=77)
    before = pipeline.seen("indexer")["batch"]
    result = pipeline.command("restart", *command)
    assert result.exit_code == 0, result.output
    assert "indexer: new settings: indexer_batch_size" in result.output
    assert (before, pipeline.seen("indexer")["batch"]) == (2_000, 77)


def test_a_restart_that_cannot_apply_the_configuration_stops_nothing(pipeline: Pipeline) -> None:
    pipeline.up()
    began = len(pipeline.trace())
    for command in (("restart", "indexer"), ("restart", "--ordered")):
        pipeline.configure(database_url="postgresql://other", indexer_batch_size=77)
        result = pipeline.command(*command)
        assert result.exit_code == 1
        assert "database_url changed since the supervisor started" in result.output
        assert re.search(
            "`rsky-pipeline stop --ordered .*`, then `rsky-pipeline start ", result.output
        )
        pipeline.configure(problem="verify = 'most': allowed are none, signature, full")
        result = pipeline.command(*command)
        assert result.exit_code == 1
        assert "the configuration cannot be used: verify = 'most'" in result.output
    assert pipeline.trace()[began:] == []


def test_a_command_with_another_configuration_is_told(pipeline: Pipeline) -> None:
    pipeline.up("indexer")
    result = pipeline.command("restart", "indexer", "--verify", "none")
    assert result.exit_code == 0
    assert "than this command's: it was started with other options" in result.output
    assert ", verify " in result.output


def test_the_log_level_changes_without_a_restart(pipeline: Pipeline) -> None:
    running = pipeline.up()
    result = pipeline.command("log-level", "indexer", "debug")
    assert (result.exit_code, result.output) == (0, "indexer: debug\n")
    running.until_logged(r"indexer-1 +WARNING log level changed log_level=debug")
    os.kill(pipeline.child("indexer-1")["pid"], signal.SIGKILL)
    until(lambda: pipeline.child("indexer-1")["restarts"] == 1, "a restart")
    until(lambda: pipeline.seen("indexer")["level"] == "debug", "the level of the next worker")
    assert pipeline.seen("ingester")["level"] == "info"
    result = pipeline.command("log-level", "all", "warning", "--json")
    assert json.loads(result.stdout)["changed"][-1].startswith("supervisor of ")
    # SIGHUP applies what is configured.
    pipeline.configure(log_level="error")
    running.signal(signal.SIGHUP)
    running.until_logged(r"indexer-1 +ERROR +log level changed log_level=error")


def test_health_is_503_until_the_worker_is_ready(pipeline: Pipeline) -> None:
    pipeline.behave(ingester={"ready_after": 1.5})
    running = pipeline.start("ingester")
    until(lambda: not pipeline.nobody_runs(), "a control socket")
    until(lambda: pipeline.child("ingester-1")["metrics_port"], "a metrics port")
    port = pipeline.child("ingester-1")["metrics_port"]
    status, body = fetch(port, "/healthz")
    assert (status, json.loads(body)["state"]) == (503, "starting")
    running.until_logged("INFO +running")
    status, body = fetch(port, "/healthz")
    document = json.loads(body)
    assert status == 200
    assert document["lag"] == 3
    assert document["streams"] == {"firehose_live": 11}
    until(lambda: pipeline.status()["streams"] == {"firehose_live": 11}, "the worker's report")


def test_an_embedded_store_that_dies_is_started_again(pipeline: Pipeline) -> None:
    pipeline.up("ingester", "embedded")
    url = f"unix://{pipeline.data}/valkey/valkey.sock"
    with redis_client(url) as client:
        client.set("kept", "yes")
    before = pipeline.child("valkey")["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: pipeline.child("valkey")["pid"] not in (before, None), "a new valkey")
    until(lambda: pipeline.child("valkey")["state"] == "ready", "valkey ready")
    with redis_client(url) as client:
        assert client.get("kept") == b"yes"
    names = [process["name"] for process in pipeline.status()["processes"]]
    assert names == ["valkey", "ingester-1"]  # the ingester does without PostgreSQL


async def test_a_loop_that_hangs_is_restarted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "SILENCE_SECONDS", 1.5)
    pipeline.behave(indexer={"stuck": True})
    settings = settings_for(pipeline.data, run_dir=pipeline.run_dir)

    def launch(_: bool) -> ChildProcess:
        lock = acquire(pipeline.run_dir / "locks" / "indexer-1.lock")
        assert lock is not None
        try:
            return spawn_worker(PROGRAM, "indexer", 1, settings, lock)
        finally:
            lock.let_go()

    ladder = (
        StopStep(signal.SIGTERM, 0.3),
        StopStep(signal.SIGQUIT, 0.3),
        StopStep(signal.SIGKILL, 5),
    )
    driver = ChildDriver("indexer", 1, Policy(escalation=ladder, ready_timeout=20), launch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        driver.send(m.Start())
        with trio.fail_after(60):
            await driver.until(lambda one: one.state.kills == 1)
            await driver.until(lambda one: one.state.phase is Phase.BACKOFF)
        driver.send(m.Stop())
        with trio.fail_after(60):
            await driver.until(lambda one: one.at_rest)
        nursery.cancel_scope.cancel()


def fetch(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of a page on loopback."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_first_lines_of_a_store_that_cannot_start_are_told(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    valkey = pipeline.data / "valkey"
    (valkey / "appendonlydir").mkdir(parents=True)
    manifest = valkey / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("this is not a manifest\n")
    running = pipeline.start("ingester", "embedded")
    assert running.ended(90) == 69
    assert running.logged("cannot start: valkey does not start: exit code 1")
    assert running.logged("manifest")
