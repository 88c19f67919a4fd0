"""Ordered stops and starts of systemd units, told to a systemctl that writes down what it hears."""

from dataclasses import replace
from pathlib import Path

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.operations.ordered import flow
from rsky_pipeline.operations.ordered.units import Units
from rsky_pipeline.runtime.errors import WorkerError
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
  echo "ExecStart={{ path=/usr/local/bin/rsky-pipeline ; argv[]=x }}";;
*) echo "$verb $*" >> calls
  [ -e "slow-$verb" ] && sleep "$(cat "slow-$verb")"
  for name in "$@"; do
    case $verb in
    stop) result=success; [ -e killed ] && result=timeout
      printf 'ActiveState=inactive\\nSubState=dead\\nResult=%s\\n' $result > "$name";;
    reset-failed) rm -f "limited-$name";;
    start|restart) if [ -e "limited-$name" ]; then
        printf 'ActiveState=failed\\nSubState=failed\\nResult=start-limit-hit\\n' > "$name"
        exit 1; fi
      if [ -e "broken-$name" ]; then
        printf 'ActiveState=failed\\nSubState=failed\\nResult=exit-code\\n' > "$name"; exit 1; fi
      printf 'ActiveState=active\\nSubState=running\\nResult=success\\n' > "$name";;
    esac
  done;;
esac
"""
NAMES = [
    *("rsky-ingester.service", "rsky-backfiller.service"),
    *("rsky-indexer.service", "rsky-indexer@2.service"),
]


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
        self.units = Units(self.settings, Systemd(str(program)))
        self.told: list[str] = []

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


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
    name = "rsky-ingester.service"
    (host.folder / f"limited-{name}").touch()
    getattr(host.units._systemd, verb)([name])
    assert host.calls() == [f"{verb} {name}", f"reset-failed {name}", f"{verb} {name}"]
    (host.folder / f"broken-{name}").touch()
    with pytest.raises(WorkerError):
        getattr(host.units._systemd, verb)([name])
    assert host.calls()[3:] == [f"{verb} {name}"]  # another reason


def test_a_unit_that_does_not_start_ends_the_start(host: Host) -> None:
    (host.folder / "broken-rsky-backfiller.service").touch()
    movement = flow.start(host.units, tell=host.told.append)
    assert not movement.ok
    assert [step.role for step in movement.steps] == ["ingester", "backfiller"]
    assert any("rsky-backfiller.service failed" in line for line in host.told)


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
