"""Program files, their backups, the journal, and what a program file answers."""

import fcntl
import io
import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded.locations import resolve_directories
from rsky_pipeline.operations.deployment import program as files
from rsky_pipeline.operations.deployment import unpacked
from rsky_pipeline.operations.deployment.deploy import (
    Deployer,
    DeploymentOrder,
    NotHealthyError,
    wait_until_healthy,
)
from rsky_pipeline.operations.deployment.journal import Journal, interrupted, lock_path
from rsky_pipeline.operations.deployment.program import Program
from rsky_pipeline.operations.ordered import flow
from rsky_pipeline.operations.ordered.movement import RoleMove, Tell
from rsky_pipeline.operations.ordered.supervised import Supervised, with_complaint
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.runtime.lock import acquire
from rsky_pipeline.runtime.program import program_command
from rsky_pipeline.supervisor import client


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return script(tmp_path / "rsky-pipeline", "echo old")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_swap_is_whole_and_keeps_the_mode(program: Path, tmp_path: Path) -> None:
    program.chmod(0o750)
    new = tmp_path / "new"
    new.write_text("new")
    backup = files.back_up(program, "20260102_030405")
    files.swap(new, program)
    assert (program.read_text(), backup.read_text().splitlines()[-1]) == ("new", "echo old")
    assert stat.S_IMODE(program.stat().st_mode) == 0o750
    assert new.read_text() == "new"
    files.swap(backup, program)
    assert program.read_text().splitlines()[-1] == "echo old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_backups_are_named_as_in_the_plan_and_pruned_oldest_first(program: Path) -> None:
    stamps = [f"20260102_03040{number}" for number in range(5)]
    for stamp in stamps:
        files.back_up(program, stamp)
    other = program.with_name("rsky-pipeline.backup.mine")
    other.write_text("an operator's own")
    assert list(files.backups(program)) == stamps[::-1]
    assert [path.name[-1] for path in files.prune(program, 2)] == ["2", "1", "0"]
    assert list(files.backups(program)) == stamps[:2:-1]
    assert other.exists()


def test_a_stamp_is_taken_once(program: Path) -> None:
    stamps = []
    for _ in range(3):
        stamps.append(files.new_stamp(program))
        files.back_up(program, stamps[-1])
    assert len(set(stamps)) == 3


def test_the_journal_knows_what_was_interrupted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "data")
    assert journal.entries() == []
    journal.begin("1", {"kind": "deploy", "launches": ["secret"]})
    journal.step("1", "stop", "begin")
    journal.step("1", "stop", "done")
    journal.end("1", "deployed")
    journal.begin("2", {"kind": "deploy"})
    journal.step("2", "stop", "begin")
    entry = journal.unfinished()
    assert entry is not None
    assert (entry.id, entry.reached("stop"), entry.finished("stop")) == ("2", True, False)
    assert not entry.reached("swap")
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    first = journal.entries()[0]
    assert first.finished("stop")
    assert "launches" not in first.document()


def test_a_journal_that_was_cut_short_is_read_and_continued(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin("1", {"kind": "deploy"})
    with journal.path.open("ab") as file:
        file.write(b'{"id": "1", "event": "st')
    assert journal.unfinished() is not None
    journal.end("1", "rolled back", "was interrupted")
    assert [entry.outcome for entry in journal.entries()] == ["rolled back"]


def test_a_program_is_asked_by_its_own_commands(tmp_path: Path) -> None:
    good = script(tmp_path / "good", 'echo \'{"version": "7", "commit": "c", "built_at": "t"}\'')
    assert Program(good).build()["version"] == "7"
    bad = script(tmp_path / "bad", "echo broken >&2; exit 3")
    with pytest.raises(WorkerError, match="exit code 3: broken"):
        Program(bad).build()
    with pytest.raises(WorkerError, match="cannot be run"):
        Program(tmp_path / "missing").build()


def test_a_program_file_that_was_cut_short_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rsky-pipeline"
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("__main__.py", "print('{}')" + "#" * 5_000)
    file.write_bytes(f"#!{sys.executable}\n".encode() + whole.getvalue()[:3_000])
    file.chmod(0o755)
    with pytest.raises(WorkerError, match="it is incomplete"):
        Program(file).build()


ILL = '{{"name": "x", "figure": "ill", "status": "{verdict}"}}'
ANSWERS = f"""case "$1" in
version) echo '{{{{"version": "{{version}}"}}}}' ;;
verify) echo '{{{{"checks": [{ILL}], "counts": {{{{}}}}}}}}' ;;
*) echo '{{{{}}}}' ;;
esac"""


class FakeManager:
    """Roles that start and stop at once."""

    name = "fake"

    def running(self) -> tuple[str, ...]:
        return ("indexer",)

    def stop(self, role: str, deadline: float | None, tell: Tell) -> RoleMove:
        return RoleMove()

    def start(self, role: str, tell: Tell) -> RoleMove:
        return RoleMove()

    restart = start

    def reload(self, roles: Sequence[str], tell: Tell) -> None:
        pass

    def crash_loops(self, roles: Sequence[str]) -> list[str]:
        return []

    def close(self, tell: Tell, deadline: float | None = None) -> RoleMove:
        return RoleMove()


def test_failed_deployments_leave_the_backups_of_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "verify_stopped", lambda *_: ())
    folder = tmp_path / "bin"
    folder.mkdir()
    program = script(folder / "rsky-pipeline", ANSWERS.format(version=1, verdict="pass"))
    settings = resolve_directories(Settings(data_dir=tmp_path, binary_path=program, backups_kept=2))
    deployer = Deployer(settings, FakeManager(), (), lambda _: None)

    def deploy(version: int, verdict: str) -> str:
        file = script(tmp_path / f"v{version}", ANSWERS.format(version=version, verdict=verdict))
        order = DeploymentOrder(file, verify_window=0, verify_limit=0, watch=0)
        return deployer.run(order).outcome

    assert files.latest_other(program) is None
    assert deploy(2, "pass") == "deployed"
    [first] = files.backups(program)
    for version in (3, 4, 5):
        assert deploy(version, "fail") == "rolled back"
    assert files.backups(program).keys() == {first}
    assert 'version": "2"' in program.read_text()
    assert files.latest_other(program) == first
    files.back_up(program, "29990102_030405")  # as of a try that was killed in the middle
    assert files.latest_other(program) == first


@pytest.fixture
def deployer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployer:
    """Version 1 is installed; version 2 is in the file `new`."""
    monkeypatch.setattr(flow, "verify_stopped", lambda *_: ())
    monkeypatch.setenv("SHIV_ROOT", str(tmp_path / "unpacked"))
    (tmp_path / "bin").mkdir()
    program = script(tmp_path / "bin/rsky-pipeline", ANSWERS.format(version=1, verdict="pass"))
    script(tmp_path / "new", ANSWERS.format(version=2, verdict="pass"))
    settings = resolve_directories(Settings(data_dir=tmp_path / "data", binary_path=program))
    return Deployer(settings, FakeManager(), (), lambda _: None)


def killed_at(deployer: Deployer, source: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(deployer, f"_{step}", kill)
        with pytest.raises(KilledError):
            deployer.run(DeploymentOrder(source, verify_window=0, verify_limit=0, watch=0))


@pytest.mark.parametrize("step", ["stop", "back_up", "swap", "ask", "start", "verify"])
def test_a_killed_deployment_is_named_and_goes_on(
    deployer: Deployer, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, source = tmp_path / "bin/rsky-pipeline", tmp_path / "new"
    order = DeploymentOrder(Path(), verify_window=0, verify_limit=0, watch=0)
    with pytest.raises(WorkerError, match="no deployment was interrupted"):
        deployer.resume(order)
    killed_at(deployer, source, step, monkeypatch)
    entry = interrupted(tmp_path / "data")
    assert entry is not None
    assert f"the deploy {entry.id} was interrupted in its step" in entry.describe()
    lock = acquire(lock_path(tmp_path / "data"))
    assert lock is not None
    assert interrupted(tmp_path / "data") is None  # it is at work
    lock.let_go()
    outcome = deployer.resume(order)
    assert (outcome.outcome, outcome.id) == ("deployed", entry.id)
    assert 'version": "2"' in program.read_text()
    assert 'version": "1"' in files.backup_path(program, entry.id).read_text()
    assert interrupted(tmp_path / "data") is None


def test_a_deployment_does_not_go_on_with_another_file(
    deployer: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = DeploymentOrder(Path(), verify_window=0, verify_limit=0, watch=0)
    source = tmp_path / "new"
    killed_at(deployer, source, "swap", monkeypatch)
    script(source, "echo another")
    with pytest.raises(WorkerError, match="is not the file of"):
        deployer.resume(order)
    entry = deployer.recover()
    assert entry is not None
    assert 'version": "1"' in (tmp_path / "bin/rsky-pipeline").read_text()


def unpack(root: Path, name: str, build: str) -> Path:
    folder = root / f"{name}_{build}"
    (folder / "site-packages/rsky_pipeline").mkdir(parents=True)
    (folder / "site-packages/rsky_pipeline/x.py").write_text("x" * 5_000)
    return folder


def test_unpacked_programs_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "unpacked"
    installed = tmp_path / "rsky-pipeline"
    with zipfile.ZipFile(installed, "w") as archive:
        archive.writestr("environment.json", json.dumps({"build_id": "two"}))
    current, old = unpack(root, "rsky-pipeline", "two"), unpack(root, "rsky-pipeline.new", "one")
    used = unpack(root, "rsky-pipeline", "used")
    other = root / "another-program_one" / "site-packages"
    other.mkdir(parents=True)
    environ = {**os.environ, "PYTHONPATH": str(used / "site-packages")}
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environ
    )
    try:
        roots = [root, root, tmp_path / "missing"]
        assert unpacked.unused(roots, [installed]) == [old]
        with (root / ".rsky-pipeline.new_one_lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as who unpacks it now
            assert unpacked.remove(old) == 0
        assert unpacked.remove(old) > 5_000
    finally:
        process.kill()
        process.communicate()
    assert [each.exists() for each in (current, old, used, other)] == [True, False, True, True]
    assert unpacked.unused(roots, [installed]) == [used]


def test_each_deployment_leaves_only_what_is_needed(deployer: Deployer, tmp_path: Path) -> None:
    root = tmp_path / "unpacked"
    old = unpack(root, "rsky-pipeline", "old")
    unfinished = tmp_path / "bin/.rsky-pipeline.new"
    unfinished.write_text("a copy that was killed")
    order = DeploymentOrder(tmp_path / "new", verify_window=0, verify_limit=0, watch=0)
    assert deployer.run(order).outcome == "deployed"
    assert not old.exists()
    assert not unfinished.exists()
    assert list(root.glob("deploy-*")) == []


def test_space_is_counted_for_each_file_system(
    deployer: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new"
    with file.open("ab") as grown:
        grown.truncate(20_000_000)
    cache = tmp_path / "cache"
    monkeypatch.setattr(
        "rsky_pipeline.operations.deployment.deploy.unpacking_roots", lambda _: [cache]
    )
    order = DeploymentOrder(file, verify_window=0, verify_limit=0, watch=0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000_000))
    outcome = deployer.run(order)
    assert outcome.outcome == "refused"
    # The new file, and what it unpacks to for us and for the processes.
    assert f"{cache}: 100 MB free, 230 MB needed; to do: `rsky-pipeline cleanup`" in outcome.reason


def test_it_is_asked_again_until_it_is_well(tmp_path: Path) -> None:
    report = {"counts": {"pass": 1, "fail": 0}, "checks": []}
    ill = {
        "counts": {"pass": 0, "fail": 1},
        "checks": [{"name": "pollution:live", "status": "fail", "figure": "3 repo events"}],
    }
    (tmp_path / "well").write_text(json.dumps(report))
    (tmp_path / "ill").write_text(json.dumps(ill))
    becomes_well = script(
        tmp_path / "program",
        f"cd {tmp_path}; if [ -e asked ]; then cat well; else touch asked; cat ill; exit 6; fi",
    )
    told: list[str] = []
    assert (
        wait_until_healthy(Program(becomes_well), told.append, window=1, limit=60)["counts"]["pass"]
        == 1
    )
    assert told[0] == "not well yet: pollution:live: 3 repo events"
    stays_ill = script(tmp_path / "other", f"cat {tmp_path}/ill; exit 6")
    with pytest.raises(NotHealthyError, match="3 repo events"):
        wait_until_healthy(Program(stays_ill), told.append, window=1, limit=0)
    accepted = wait_until_healthy(
        Program(stays_ill), told.append, window=1, limit=0, accept=["pollution"]
    )
    assert accepted["counts"]["fail"] == 1
    silent = script(tmp_path / "silent", "exit 1")
    with pytest.raises(WorkerError, match="does not answer"):
        wait_until_healthy(Program(silent), told.append, window=1, limit=0)


def test_a_crash_loop_ends_the_waiting_at_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def broken() -> str:
        asked.append(1)
        return "indexer-1 is crashloop: exit code 1: no such module" if len(asked) > 1 else ""

    endless = script(tmp_path / "endless", "exec sleep 600")
    with pytest.raises(WorkerError, match="indexer-1 is crashloop"):
        wait_until_healthy(Program(endless), lambda _: None, window=300, limit=600, broken=broken)


SLEEP = "import time; time.sleep(60)"
AS_MODULE = ("-P", "-m", "rsky_pipeline")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("{bin}/python", "{bin}/rsky-pipeline"), True),  # a program file, or a package's script
        (("bin/python", "bin/rsky-pipeline"), True),
        (("{bin}/python", *AS_MODULE), True),  # of a clone or wheel, as it starts itself
        (("bin/python", "-m", "rsky_pipeline"), True),
        (("python", *AS_MODULE), False),  # found by its PATH, which may have changed
        (("{base}/python", *AS_MODULE), False),  # with no script beside it
    ],
)
def test_the_program_of_a_running_supervisor_is_found(
    words: tuple[str, ...], found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, script = tmp_path / "bin", tmp_path / "bin" / "rsky-pipeline"
    for file in (script, tmp_path / "rsky_pipeline" / "__main__.py"):
        file.parent.mkdir()
        file.write_text(SLEEP)
    for place in (folder, tmp_path):
        (place / "python").symlink_to(os.path.realpath(sys.executable))
    command = [word.format(bin=folder, base=tmp_path) for word in (*words, "run", "--role=indexer")]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, executable=tmp_path / "python", cwd=tmp_path, env=environ)
    try:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # empty for a moment while the program is put in place
        status = {"pid": process.pid, "roles": ["indexer"]}
        supervisor = client.Supervisor(tmp_path / "socket", status)
        monkeypatch.setattr(client, "find", lambda _: [supervisor])
        [launch] = Supervised(resolve_directories(Settings(data_dir=tmp_path))).launches()
    finally:
        process.kill()
        process.wait()
    assert launch.program == (script if found else None)
    assert launch.arguments == ("run", "--role=indexer")


def test_a_start_names_the_script_that_it_was_called_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = script(tmp_path / "rsky-pipeline", "")
    monkeypatch.setattr(sys, "argv", [str(called), "start"])
    assert program_command() == (sys.executable, str(called))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "rsky_pipeline" / "__main__.py"), "start"])
    assert program_command() == (sys.executable, *AS_MODULE)


def test_what_a_worker_printed_last_is_told_once() -> None:
    log = (
        '{"msg": "begins"}\nTraceback (most recent call last):\nImportError: no x\n<3>{"msg": 1}\n'
    )
    assert with_complaint("indexer-1 is crashloop: exit code 1", log).endswith(
        "; ImportError: no x"
    )
    told = "indexer-1 is crashloop: exit code 1: ImportError: no x"
    assert with_complaint(told, log) == told
    assert with_complaint("line", '{"msg": "begins"}\n12:00:01 indexer-1 INFO ready\n') == "line"
