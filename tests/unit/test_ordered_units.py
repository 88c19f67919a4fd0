"""Ordered stops and starts of systemd units, told to a systemctl that writes down what it hears."""

from dataclasses import replace
from pathlib import Path

import pytest

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded.locations import resolve_directories
from rsky_pipeline.operations.ordered import flow
from rsky_pipeline.operations.ordered.supervised import Supervised, last_words
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.supervisor import client
from rsky_pipeline.systemd.systemctl import Systemd

SYSTEMCTL = """#!/bin/sh
# Units are files in this folder: their content is what `show` says.
cd {folder}
shift 2  # --no-pager --no-ask-password
verb=$1; shift
case $verb in
list-units) for name in "rsky-indexer@2.service"; do
    case "$5" in rsky-indexer*) [ -e "$name" ] && echo "$name loaded active running";; esac
  done;;
show) name=$2
  if [ -e "$name" ]; then echo LoadState=loaded; cat "$name"; else echo LoadState=not-found; fi
  echo "ExecStart={{ path=/usr/local/bin/rsky-pipeline ; argv[]=/usr/local/bin/rsky-pipeline run" \
    "--config {folder}/units.toml ; ignore_errors=no }}"
  echo "Environment=SHIV_ROOT={folder}/cache MALLOC_ARENA_MAX=2";;
*) echo "$verb $*" >> calls
  [ -e "slow-$verb" ] && sleep "$(cat "slow-$verb")"
  for name in "$@"; do
    case $verb in
    stop) result=success; [ -e killed ] && result=timeout
      printf 'ActiveState=inactive\\nSubState=dead\\nResult=%s\\n' $result > "$name";;
    reset-failed) rm -f "limited-$name"; [ -e "$name" ] || exit 1;;
    start|restart) if [ -e "limited-$name" ]; then  # the result stays that of the last crash
        printf 'ActiveState=failed\\nSubState=failed\\nResult=signal\\n' > "$name"
        exit 1; fi
      if [ -e "broken-$name" ]; then
        printf 'ActiveState=failed\\nSubState=failed\\nResult=exit-code\\n' > "$name"
        printf 'ExecMainCode=1\\nExecMainStatus=3\\n' >> "$name"; exit 1; fi
      printf 'ActiveState=active\\nSubState=running\\nResult=success\\n' > "$name";;
    esac
  done;;
esac
"""
NAMES = [
    *("rsky-ingester.service", "rsky-backfiller.service"),
    *("rsky-indexer.service", "rsky-indexer@2.service"),
]
BOTH = ["ingester", "indexer"]


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "systemctl"
        program.write_text(SYSTEMCTL.format(folder=folder))
        program.chmod(0o755)
        for name in NAMES:
            (folder / name).write_text("ActiveState=active\nSubState=running\nResult=success\n")
        self.settings = replace(
            Settings(), data_dir=folder, run_dir=folder / "run",
            redis_url="unix:///nonexistent", database_url="postgresql:///x",
        )  # fmt: skip
        self.systemd = Systemd(str(program))
        self.units = Units(self.settings, self.systemd)
        self.told: list[str] = []

    def calls(self) -> list[str]:
        """Return what moved units."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("reset-failed ")]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_consumers_stop_first_with_all_their_workers(host: Host) -> None:
    assert host.units.running() == ("ingester", "backfiller", "indexer")
    movement = flow.stop(host.units, host.settings, tell=host.told.append)
    assert host.calls() == [
        "stop rsky-indexer.service rsky-indexer@2.service",
        "stop rsky-backfiller.service",
        "stop rsky-ingester.service",
    ]
    assert movement.ok
    assert not movement.forced
    assert host.units.running() == ()
    # Without a Redis nothing can be verified, which is said and no failure.
    assert {one.result for step in movement.steps for one in step.findings} == {"note"}


def test_producers_start_first_and_what_was_stopped_comes_back(host: Host) -> None:
    flow.stop(host.units, host.settings, tell=host.told.append)
    (host.folder / "rsky-indexer@2.service").unlink()  # systemd forgets an instance
    movement = flow.start(host.units, tell=host.told.append)
    assert movement.ok
    assert host.calls()[3:] == [
        "start rsky-ingester.service",
        "start rsky-backfiller.service",
        "start rsky-indexer.service rsky-indexer@2.service",
    ]


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_the_start_limit_does_not_end_ordinary_work(host: Host, verb: str) -> None:
    """Nor does a crash loop of the version before keep the one that is put back from starting."""
    name = "rsky-indexer@2.service"
    (host.folder / f"limited-{name}").touch()
    getattr(host.units._systemd, verb)(["rsky-indexer.service", name])
    assert host.systemd.show(name).active == "active"
    assert host.calls() == [f"{verb} rsky-indexer.service {name}"]
    (host.folder / name).unlink()  # systemd has forgotten it
    getattr(host.units._systemd, verb)([name])
    assert host.systemd.show(name).active == "active"
    (host.folder / f"broken-{name}").touch()
    with pytest.raises(WorkerError):
        getattr(host.units._systemd, verb)([name])
    assert host.calls()[2:] == [f"{verb} {name}"]


def test_a_unit_that_does_not_start_ends_the_start(host: Host) -> None:
    (host.folder / "broken-rsky-backfiller.service").touch()
    movement = flow.start(host.units, tell=host.told.append)
    assert not movement.ok
    assert [step.role for step in movement.steps] == ["ingester", "backfiller"]
    assert "rsky-backfiller.service failed (failed), exit code 3" in host.told


def test_a_stop_that_systemd_forced_is_told(host: Host) -> None:
    (host.folder / "killed").touch()
    movement = flow.stop(host.units, host.settings, roles=["indexer"], tell=host.told.append)
    assert movement.forced


def test_a_deadline_kills(host: Host) -> None:
    (host.folder / "slow-stop").write_text("2")
    movement = flow.stop(
        host.units, host.settings, roles=["backfiller"], deadline=0.2, tell=host.told.append
    )
    assert movement.forced
    assert "kill --signal=SIGKILL rsky-backfiller.service" in host.calls()


def test_a_rolling_restart_takes_one_unit_at_a_time(host: Host) -> None:
    roles = host.units.running()
    movement = flow.restart_rolling(host.units, roles=roles, tell=host.told.append)
    assert movement.ok
    assert host.calls() == [
        "restart rsky-indexer.service",
        "restart rsky-indexer@2.service",
        "restart rsky-backfiller.service",
        "restart rsky-ingester.service",
    ]


def manager(host: Host, file: Path | None, choice: str = "auto", **flags: str) -> str:
    loaded = load(file, {}, flags)
    settings = resolve_directories(loaded.settings)
    return flow.manager_of(loaded, settings, choice, host.systemd).name


def test_units_are_moved_by_their_own_configuration_alone(host: Host) -> None:
    theirs, other = host.folder / "units.toml", host.folder / "other.toml"
    theirs.write_text(f'run_dir = "{host.folder}/run"\n')
    other.write_text(f'data_dir = "{host.folder}/mine"\n')
    link = host.folder / "link.toml"
    link.symlink_to(theirs)
    for file in (theirs, link):
        assert manager(host, file) == "systemd"
        assert manager(host, file, "supervisor") == "supervisor"
    assert manager(host, other) == "supervisor"
    assert manager(host, None, data_dir=f"{host.folder}/mine") == "supervisor"
    assert manager(host, theirs, run_dir=f"{host.folder}/mine") == "supervisor"  # of one's own
    with pytest.raises(WorkerError, match=f"the units use {theirs}, not this configuration"):
        manager(host, other, "systemd")
    # Its supervisors would answer to commands of both.
    other.write_text(theirs.read_text())
    with pytest.raises(WorkerError, match="is the run_dir of the units, which use"):
        manager(host, other)


def test_without_units_the_supervisors_are_moved(host: Host) -> None:
    for name in NAMES:
        (host.folder / name).unlink()
    assert manager(host, None, data_dir=str(host.folder)) == "supervisor"
    assert manager(host, None, "systemd", data_dir=str(host.folder)) == "systemd"


def looping(role: str) -> client.Supervisor:
    how = {"code": 1, "signal": None, "reason": "ImportError: no module of that name"}
    child = {"name": f"{role}-1", "role": role, "kind": "worker", "state": "crashloop",
             "last_exit": how}  # fmt: skip
    steps = ["waiting for the database: refused", "schema up to date"]
    status = {"pid": 1, "roles": [role], "uptime_seconds": 0.1, "processes": [child],
              "steps": steps}  # fmt: skip
    return client.Supervisor(Path("x"), status)


def test_a_worker_that_ends_again_and_again_fails_the_start_of_its_unit(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "find", lambda _: [looping("indexer")])
    movement = flow.start(host.units, roles=["ingester", "indexer"], tell=host.told.append)
    assert [step.good for step in movement.steps] == [True, False]
    assert (
        host.told[-1] == "indexer-1 is crashloop: exit code 1: ImportError: no module of that name"
    )
    # What a supervisor waits for is told while systemd waits for it.
    assert "  waiting for the database: refused" in host.told


@pytest.mark.parametrize(
    ("state", "restarts", "how", "line"),
    [
        ("ready", 2, {"code": None, "signal": 6}, "indexer-1 ended 2 times: killed by SIGABRT"),
        ("backoff", 3, {"code": 1, "signal": None}, "indexer-1 ended 3 times: exit code 1"),
        ("failed", 0, {"code": 78, "signal": None}, "indexer-1 is failed: exit code 78"),
        ("ready", 1, {"code": None, "signal": 6}, None),  # an accident
        ("ready", 5, {"code": 69, "signal": None}, None),  # a store was away
        ("ready", 2, {"code": 0, "signal": None}, None),  # somebody restarted it
        ("ready", 2, {"code": None, "signal": 15}, None),
        ("ready", 0, None, None),
    ],
)
def test_a_worker_that_ends_between_the_looks_is_seen(
    host: Host, monkeypatch: pytest.MonkeyPatch, state: str, restarts: int,
    how: dict[str, int | None] | None, line: str | None,
) -> None:  # fmt: skip
    """It may be ready whenever one looks: a defect of the first entry, of the first minute."""
    child = {"name": "indexer-1", "role": "indexer", "kind": "worker", "state": state,
             "restarts": restarts, "last_exit": how and {"reason": None, **how}}  # fmt: skip
    found = client.Supervisor(Path("x"), {"roles": ["indexer"], "processes": [child]})
    monkeypatch.setattr(client, "find", lambda _: [found])
    lines = [line] if line else []
    assert Supervised(host.settings).crash_loops(BOTH) == lines
    assert host.units.crash_loops(BOTH) == lines


def test_a_unit_that_systemd_restarts_is_seen(host: Host) -> None:
    """A further worker has no supervisor."""
    path = host.folder / "rsky-indexer@2.service"
    assert host.units.crash_loops(BOTH) == []
    text = "ActiveState=activating\nSubState=auto-restart\nExecMainCode={}\nExecMainStatus={}\n"
    path.write_text(text.format(3, 6) + "NRestarts=2\n")
    assert host.units.crash_loops(BOTH) == [
        "rsky-indexer@2.service ended 3 times: killed by SIGABRT"
    ]
    path.write_text(text.format(1, 69) + "NRestarts=2\n")  # a store is away
    assert host.units.crash_loops(BOTH) == []
    assert host.units.crash_loops(["ingester"]) == []  # of another role, which was not moved
    path.write_text("ActiveState=failed\nSubState=failed\nExecMainCode=1\nExecMainStatus=77\n")
    assert host.units.crash_loops(BOTH) == ["rsky-indexer@2.service ended 1 times: exit code 77"]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ('{"msg": "worker failed", "reason": "RuntimeError: x", "code": 1}',
         "worker failed: RuntimeError: x"),
        ('{"msg": "cannot write", "error": "EIO"}\nTraceback\n\nOSError: y\n',
         "cannot write: EIO | Traceback | OSError: y"),
        ("Fatal Python error: Aborted\n\nThread 1:\n  File x, line 1\n  File y, line 2\nE: m",
         "Fatal Python error: Aborted"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_last_words_of_a_process_have_its_reason(log: str, words: str) -> None:
    assert last_words(log) == words


def test_the_program_of_a_unit_unpacks_where_its_environment_says(host: Host) -> None:
    unit = host.units.units("indexer")[0]
    assert unit.configuration == host.folder / "units.toml"
    assert unit.unpacks_to == host.folder / "cache"
