"""A day of an operator, in its order: each test goes on with the host of the one before."""

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rsky_pipeline.configuration.topology import start_order
from rsky_pipeline.demo.processes import Simulation
from tests import binaries
from tests.host.host import (
    NETWORK,
    PASSWORD,
    PROGRAM,
    ROLES,
    TLS,
    Host,
    operators_host,
    write_settings,
)
from tests.integration.deployment.versions import POLLUTING
from tests.pages import commands
from tests.real.servers import ENDS_WITH_US

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
CONVERT = "ingester/commits/convert.py"
ENDING = '\nraise RuntimeError("a defect of this version")\n'
QUICK = ("--watch=0", "--verify-window=3s")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Program files: two good versions, one that pollutes a stream, one whose indexer ends."""
    folder = tmp_path_factory.mktemp("binary")
    original = binaries.build(folder / "original")
    added = {"3.0.0": {CONVERT: POLLUTING}, "4.0.0": {"indexer/role.py": ENDING}}
    return {
        version: binaries.variant(original, folder / version, version, added.get(version))
        for version in ("1.0.0", "2.0.0", "3.0.0", "4.0.0")
    }


@pytest.fixture(scope="module")
def host(versions: dict[str, Path]) -> Iterator[Host]:
    """The host; the program files lie in its /shared."""
    with operators_host() as found:
        for version, path in versions.items():
            shutil.copy2(path, found.container.shared / version)
        yield found


def states(host: Host) -> dict[str, str]:
    return {role: host.container.active(f"rsky-{role}") for role in ROLES}


RUNNING = dict.fromkeys(ROLES, "active")


def test_install_as_the_runbook_says(host: Host) -> None:
    container = host.container
    for line in commands("Install"):
        if line.startswith("install -m 755 rsky-pipeline "):
            line = line.replace(" rsky-pipeline ", " /shared/1.0.0 ", 1)
        if line.startswith("RSKY_PIPELINE_"):  # of the file with the passwords
            write_settings(host)
            continue
        container.shell(line, code=None if line.endswith("status") else 0)
    container.wait_for(lambda: states(host) == RUNNING, "all units run")
    host.command("systemd", "status")
    host.wait_for_records()
    host.wait_until_well()
    assert host.document("status")["healthy"]
    assert "compiled readers" not in container.journal(), "the program file reads with Python alone"
    assert {each["version"] for each in host.document("status")["supervisors"]} == {"1.0.0"}


def test_the_accounts_of_the_stores_have_few_rights(host: Host) -> None:
    """Which is what the rest of the day rests on."""
    assert "NOPERM" in host.container.shell(f"{as_rsky()} FLUSHALL 2>&1", code=None)
    assert "NOPERM" in host.container.shell(f"{as_rsky()} CONFIG SET save '' 2>&1", code=None)
    rights = "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = 'rsky'"
    assert host.sql(rights) == "f"
    used = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
    used += "WHERE usename = 'rsky'"
    assert host.sql(used) == "t"


def as_rsky() -> str:
    return (
        f"redis-cli --tls --cacert {TLS}/ca.pem --user rsky --pass '{PASSWORD}' --no-auth-warning"
    )


def test_the_logs_are_where_the_runbook_says(host: Host) -> None:
    found = host.page(commands("Find the logs"))
    lines = next(text for line, text in found.items() if "-o cat" in line and "200" in line)
    records = []
    for line in lines.splitlines():
        with suppress(ValueError):
            records.append(json.loads(line))
    assert any(each.get("role") == "indexer" for each in records), lines


def test_units_restart_stop_and_start_in_order(host: Host) -> None:
    container = host.container
    assert container.run("systemctl", "start", "rsky-indexer@2").returncode == 0, (
        container.journal()
    )
    for role in ROLES:
        assert container.run("systemctl", "restart", f"rsky-{role}").returncode == 0
    container.wait_for(lambda: states(host) == RUNNING, "all units run")
    assert container.active("rsky-indexer@2") == "active"
    container.run("systemctl", "stop", "rsky-indexer@2")
    steps = host.document("stop", "--ordered")["steps"]
    assert [step["role"] for step in steps] == ["indexer", "backfiller", "ingester"]
    assert not any(step["forced"] for step in steps)
    steps = host.document("start", "--ordered")["steps"]
    assert [step["role"] for step in steps] == ["ingester", "backfiller", "indexer"]
    before = len(container.stops())
    assert container.run("systemctl", "stop", "rsky-pipeline.target").returncode == 0
    container.wait_for(
        lambda: all(container.active(f"rsky-{role}") == "inactive" for role in start_order()),
        "systemd has stopped all units",
    )
    assert container.stops()[before:] == ["indexer", "backfiller", "ingester"], container.journal()
    assert container.run("systemctl", "start", "rsky-pipeline.target").returncode == 0
    host.wait_for_records()


def test_a_reboot(host: Host) -> None:
    host.container.reboot()
    host.container.wait_for(lambda: states(host) == RUNNING, "all units run after the reboot")
    host.wait_for_records()
    host.wait_until_well()


def test_deploy_fail_and_roll_back(host: Host) -> None:
    container = host.container

    def version() -> str:
        return host.command("--version")

    done = host.document("deploy", "/shared/2.0.0", *QUICK)
    assert done["plan"]["manager"] == "systemd"
    assert "2.0.0" in version()
    assert {each["version"] for each in host.document("status")["supervisors"]} == {"2.0.0"}
    host.command("deploy", "/shared/3.0.0", *QUICK, "--verify-for=20s", code=6)
    assert "2.0.0" in version()
    assert states(host) == RUNNING
    failed = container.run(PROGRAM, "deploy", "/shared/4.0.0", *QUICK)
    assert failed.returncode == 1
    assert "a defect of this version" in failed.stdout + failed.stderr
    assert "2.0.0" in version()
    assert states(host) == RUNNING
    container.shell(f"{PROGRAM} streams purge firehose_live --type repo")
    for line in commands("Roll back")[:2]:
        container.shell(f"{line} {' '.join(QUICK)}")
    assert "1.0.0" in version()
    outcomes = host.document("deployments", "list")["deployments"]
    assert [each["kind"] for each in outcomes][-1] == "rollback"
    host.wait_until_well()


def test_backup_and_both_ways_back(host: Host) -> None:
    host.page(commands("Back up", "backup.md"))
    host.wait_for_records(300)  # what the backup lacks
    lines = commands("Restore the database", "backup.md")
    changes = {"mod.bsky.app": host.simulation.labeler}
    begin = lines.index("rsky-pipeline start --ordered") + 1
    found = host.page(lines[:begin], changes)
    assert "belong together" in found["rsky-pipeline db pair"]
    host.container.wait_for(lambda: gap_kinds(host, "database_lost"), "the loss is a recorded gap")
    host.container.wait_for(lambda: repaired(host), "the gap is repaired")
    host.wait_until_well()
    host.page(lines[begin:], changes)
    for section in ("Restore the files of the server", "Restore Redis"):
        host.wait_for_records(100)
        found = host.page(commands(section, "backup.md"))
        assert "belong together" in found["rsky-pipeline db pair"]
        host.container.wait_for(lambda: repaired(host), "the gap is repaired")
        host.wait_until_well()


def gap_kinds(host: Host, kind: str) -> bool:
    return any(each["kind"] == kind for each in host.document("gaps", "list")["gaps"])


def repaired(host: Host) -> bool:
    return all(each["status"] == "repaired" for each in host.document("gaps", "list")["gaps"])


def test_a_redis_that_lost_everything(host: Host) -> None:
    for line in (
        "rsky-pipeline stop --ordered", "systemctl stop redis-server",
        "rm -rf /var/lib/redis/appendonlydir /var/lib/redis/dump.rdb",
        "systemctl start redis-server", "rsky-pipeline start --ordered",
    ):  # fmt: skip
        host.container.shell(line)
    host.container.wait_for(lambda: gap_kinds(host, "redis_lost"), "the loss is a recorded gap")
    host.container.wait_for(lambda: repaired(host), "the gap is repaired")
    host.wait_until_well()


def test_the_disk_of_the_database_is_full(host: Host) -> None:
    container = host.container
    lines = commands("The disk of the database is full")
    container.shell("dd if=/dev/zero of=/var/lib/postgresql/core bs=64k", code=None)
    try:
        container.wait_for(lambda: "database" in findings(host), "status names the database", 240)
        assert container.run(PROGRAM, "verify", "--window", "2s").returncode == 6
        for line in lines[:2]:
            container.shell(line)
    finally:
        container.shell("rm /var/lib/postgresql/core")
    if container.active("postgresql@15-main") != "active":
        container.shell("systemctl start postgresql@15-main")
    host.page(lines[:-1])
    host.wait_until_well(240)
    host.wait_for_records()


def findings(host: Host) -> str:
    document = host.container.run(PROGRAM, "status", "--json").stdout
    return " ".join(
        finding["kind"]
        for process in json.loads(document)["processes"]
        for finding in process["findings"]
    )


TRIGGER = """
CREATE FUNCTION bsky.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.uri ~ '[a-m]$' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON bsky.like FOR EACH ROW EXECUTE FUNCTION bsky.refuse();
"""


def test_an_sql_error_that_repeats(host: Host) -> None:
    host.sql(TRIGGER)
    host.container.wait_for(
        lambda: host.document("dlq", "list")["total"] > 3, "some likes are dead letters"
    )
    lines = commands("An SQL error repeats", part="It is of an entry")
    found = host.page(lines[:2])
    assert "not this one" in found[lines[1]]
    assert "P0001" in found[lines[1]]
    host.sql("DROP TRIGGER refuse ON bsky.like; DROP FUNCTION bsky.refuse")
    found = host.page(lines[2:])
    assert "came back 0" in found[lines[2]]
    host.container.shell(f"{PROGRAM} dlq retry --all", code=None)
    assert host.document("dlq", "list")["total"] == 0
    host.page(commands("An SQL error repeats", part="It is of every entry"))


def test_in_the_end_every_row_is_right(host: Host) -> None:
    """After restarts, a reboot, deployments, three restores, a lost Redis and a full disk."""
    host.simulation.control.stop()
    deadline = time.monotonic() + 300
    while wrong := host.differences():
        assert time.monotonic() < deadline, wrong
        time.sleep(3)
    host.wait_until_well()


def test_a_pds_is_taken_over(host: Host) -> None:
    lines = commands("A PDS is taken over")
    changes = {"pds.example.com": host.simulation.urls["pds"].removeprefix("http://")}
    hidden = 'SELECT count(*) FROM bsky.actor WHERE "takedownRef" IS NOT NULL'
    before = int(host.sql(hidden))
    host.page(lines[:2], changes)
    assert int(host.sql(hidden)) > before
    host.page(lines[2:], changes)
    assert int(host.sql(hidden)) == before


def test_the_relay_lost_its_state(host: Host) -> None:
    """Another network of the same accounts stands in its place, whose numbers begin anew."""
    host.simulation.process.end()
    slower = [*NETWORK, "--rate=10"]  # it must not reach the numbers of before meanwhile
    host.simulation = Simulation(host.container.shared, slower, wrapper=ENDS_WITH_US)
    lines = commands("The relay lost its state")
    changes = {"bsky.network": host.simulation.relay, "mod.bsky.app": host.simulation.labeler}
    host.container.wait_for(
        lambda: "does not fit" in host.container.run(PROGRAM, "status").stdout,
        "status has the reason",
    )
    assert host.container.run(PROGRAM, "verify", "--window", "2s").returncode == 6
    begin = next(number for number, line in enumerate(lines) if "reset" in line)
    host.page(lines[:begin], codes={"rsky-pipeline status": 1})
    newest = 'SELECT max("indexedAt") FROM bsky.record'
    before = host.sql(newest)
    host.page(lines[begin : begin + 2], changes)
    host.container.wait_for(lambda: host.sql(newest) > before, "new records are written")
    host.container.wait_for(lambda: repaired(host), "the gap is repaired")
    host.page([line for line in lines[begin + 2 :] if line != "rsky-pipeline verify"], changes)
    host.wait_until_well()


def test_units_are_taken_away(host: Host) -> None:
    host.command("stop", "--ordered")
    host.command("systemd", "uninstall")
    assert not host.container.run("systemctl", "cat", "rsky-indexer").stdout


def test_backup_of_embedded_stores(host: Host) -> None:
    """By an account of its own, which knows nothing of the units."""
    container, data = host.container, "/home/op/.local/state/rsky-pipeline"
    container.shell("useradd --create-home op")
    toml = container.root / "etc/rsky-pipeline/rsky-pipeline.toml"
    kept = [line for line in toml.read_text().splitlines() if "_dir" not in line]
    (container.root / "home/op/rsky-pipeline.toml").write_text("\n".join(kept) + "\n")

    def run(line: str) -> str:
        inside = f"cd && {line.replace('DATA_DIR', data)}"
        return container.shell(f"runuser -l op -c {shlex.quote(inside)}")

    run("rsky-pipeline start")
    lines = commands("Embedded stores", "backup.md")
    for line in lines:
        if line == "rsky-pipeline verify":
            container.wait_for(
                lambda: "0 fail" in run("rsky-pipeline verify --window 3s || true"), "it is well"
            )
        run(line)
        if line.endswith("start"):
            container.wait_for(lambda: "ready" in run("rsky-pipeline status || true"), "it runs")
    run("rsky-pipeline stop")
