"""The units under a real systemd: install, start, ordered stop, deploy and rollback.

Needs root, systemd-nspawn and a root file system with systemd and python3 of the version that the
tests run on, which RSKY_TEST_SYSTEMD_ROOT names:

    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3 bookworm FOLDER
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.demo.processes import Simulation
from tests import binaries, stores

ROOT = os.environ.get("RSKY_TEST_SYSTEMD_ROOT", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ROOT, reason="RSKY_TEST_SYSTEMD_ROOT names no root file system"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a container needs root"),
    pytest.mark.skipif(not shutil.which("systemd-nspawn"), reason="there is no systemd-nspawn"),
]
PROGRAM = "/usr/local/bin/rsky-pipeline"
SEARCHED = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
SHARED = "/shared"  # our scratch folder in there; units have a /tmp of their own


class Container:
    """A booted container; `run` runs a command in all its namespaces."""

    def __init__(self, pid: int, root: Path) -> None:
        self.root = root
        self._pid = pid

    def run(self, *command: str, seconds: float = 200) -> "subprocess.CompletedProcess[str]":
        # As an operator does: with the passwords that systemd gives to the units.
        file = "/etc/rsky-pipeline/environment"
        shell = f'if [ -e {file} ]; then set -a; . {file}; set +a; fi; exec "$@"'
        return subprocess.run(
            ["nsenter", "--target", str(self._pid), "--all", "env", "-i", "HOME=/root",
             f"PATH={SEARCHED}", "sh", "-c", shell, "sh", *command],
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip

    def active(self, role: str) -> str:
        return self.run("systemctl", "is-active", f"rsky-{role}").stdout.strip()

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "short-precise", "-n", "4000").stdout

    def stops(self) -> list[str]:
        """Return the roles whose units stopped, in order."""
        return re.findall(r"systemd\[1\]: Stopped .*rsky-pipeline (\w+):", self.journal())


@contextmanager
def booted(root: Path, log: Path) -> Iterator[Container]:
    with log.open("wb") as output:
        process = subprocess.Popen(
        ["systemd-nspawn", "--directory", str(root), "--boot", "--register=no", "--keep-unit",
         f"--bind={tempfile.gettempdir()}:{SHARED}"],
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        state = "nothing is known yet"
        while True:
            seen = f"{state}: {log.read_text(errors='replace')[-3000:]}"
            assert process.poll() is None, f"the container ended: {seen}"
            assert time.monotonic() < deadline, f"the container does not boot: {seen}"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if children:
                container = Container(int(children[0]), root)
                asked = container.run("systemctl", "is-system-running")
                state = asked.stdout.strip() or asked.stderr
                if state in ("running", "degraded"):
                    break
            time.sleep(0.5)
        yield container
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def opened(path: Path) -> None:
    """Let every account use a socket and the way to it: the container has accounts of its own."""
    for each in (path, *path.parents):
        if str(each).startswith(f"{tempfile.gettempdir()}/rsky-test-"):
            each.chmod(0o777)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("binary")
    original = binaries.build(folder / "original")
    return (
        binaries.variant(original, folder / "one", "1.0.0"),
        binaries.variant(original, folder / "two", "2.0.0"),
    )


def test_a_life_under_systemd(programs: tuple[Path, Path]) -> None:
    root, ours = Path(ROOT), f"{tempfile.gettempdir()}/"
    one, two = programs
    for leftover in ("etc/rsky-pipeline", "var/lib/rsky-pipeline", "var/cache/rsky-pipeline"):
        shutil.rmtree(root / leftover, ignore_errors=True)
    for path in (root / "usr/local/bin").glob("rsky-pipeline*"):
        path.unlink()
    with ExitStack() as stack:
        redis = stack.enter_context(stores.running_valkey())
        database = stack.enter_context(stores.running_postgres())
        shared = stack.enter_context(stores.scratch_directory())
        simulation = Simulation(shared, ["--rate=50"])
        stack.callback(simulation.process.end)
        valkey_socket = Path(unquote(urlsplit(redis).path))
        postgres_folder = Path(parse_qs(urlsplit(database).query)["host"][0])
        for path in (valkey_socket, postgres_folder, *postgres_folder.iterdir()):
            opened(path)
        container = stack.enter_context(booted(root, shared / "console"))
        shutil.copy2(one, root / PROGRAM[1:])
        installed = container.run(PROGRAM, "systemd", "install", "--json")
        assert installed.returncode == 0, installed.stderr
        lines = {
            **simulation.environment,
            "RSKY_PIPELINE_REDIS_URL": redis.replace(ours, f"{SHARED}/"),
            "RSKY_PIPELINE_DATABASE_URL": database.replace(
                quote(ours, ""), quote(f"{SHARED}/", "")
            ),
        }
        environment = root / "etc/rsky-pipeline/environment"
        environment.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        toml = root / "etc/rsky-pipeline/rsky-pipeline.toml"
        toml.write_text('run_dir = "/run/rsky-pipeline"\ndata_dir = "/var/lib/rsky-pipeline"\n')
        assert container.run(PROGRAM, "config", "check").returncode == 0

        started = container.run(PROGRAM, "start", "--ordered", "--json")
        assert started.returncode == 0, started.stdout + started.stderr + container.journal()
        steps = json.loads(started.stdout)["steps"]
        assert [step["role"] for step in steps] == ["ingester", "backfiller", "indexer"]
        status = container.run(PROGRAM, "systemd", "status", "--json")
        assert {unit["active"] for unit in json.loads(status.stdout)["units"]} == {"active"}

        further = container.run("systemctl", "start", "rsky-indexer@2")
        assert further.returncode == 0, container.journal()

        arguments = ["--watch=0", "--verify-window=3", "--json", "--accept=process:indexer"]
        result = container.run(PROGRAM, "deploy", str(two).replace(ours, f"{SHARED}/"), *arguments)
        assert result.returncode == 0, result.stdout + result.stderr + container.journal()
        assert json.loads(result.stdout)["plan"]["manager"] == "systemd"
        assert "2.0.0" in container.run(PROGRAM, "--version").stdout
        supervisors = json.loads(container.run(PROGRAM, "status", "--json").stdout)["supervisors"]
        assert {one["version"] for one in supervisors} == {"2.0.0"}
        assert container.active("indexer@2") == "active"

        result = container.run(PROGRAM, "rollback", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "1.0.0" in container.run(PROGRAM, "--version").stdout

        stopped = container.run(PROGRAM, "stop", "--ordered", "--json")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        steps = json.loads(stopped.stdout)["steps"]
        assert [step["role"] for step in steps] == ["indexer", "backfiller", "ingester"]
        assert not any(step["forced"] for step in steps)

        # systemd itself keeps the order, too.
        assert container.run("systemctl", "start", "rsky-pipeline.target").returncode == 0
        assert [container.active(role) for role in ("ingester", "backfiller", "indexer")] == [
            "active"
        ] * 3
        before = container.stops()
        assert container.run("systemctl", "stop", "rsky-pipeline.target").returncode == 0
        deadline = time.monotonic() + 90  # it waits for the target alone
        while any(container.active(role) != "inactive" for role in start_order()):
            assert time.monotonic() < deadline, container.journal()
            time.sleep(0.5)
        stops = container.stops()[len(before) :]
        assert stops == ["indexer", "backfiller", "ingester"], container.journal()
        assert container.run(PROGRAM, "systemd", "uninstall").returncode == 0
