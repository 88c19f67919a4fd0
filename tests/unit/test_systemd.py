"""The units are what systemd understands, and say the same as the program."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.topology import ROLES, start_order, stop_order
from rsky_pipeline.systemd import files
from rsky_pipeline.systemd.systemctl import Systemd, Unit

FOLDER = Path(files.__file__).parent / "units"
UNITS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".service", ".target"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]
MULTIPLE = ("backfiller", "indexer")  # roles of which further workers make sense
analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def read(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    parser.read(path)
    return parser


def unit(role: str, suffix: str = "") -> configparser.RawConfigParser:
    return read(FOLDER / f"rsky-{role}{suffix}.service")


def after(parser: configparser.RawConfigParser) -> set[str]:
    return {
        match.group(1)
        for word in parser["Unit"]["After"].split()
        if (match := re.fullmatch(r"rsky-(\w+)\.service", word))
    }


def test_there_is_a_unit_for_every_role_and_for_further_workers() -> None:
    assert {path.name for path in UNITS} == {
        *(f"rsky-{role}.service" for role in start_order()),
        *(f"rsky-{role}@.service" for role in MULTIPLE),
        "rsky-pipeline.target",
    }
    assert {role.name for role in ROLES if role.consumes} == set(MULTIPLE)


@pytest.mark.parametrize("role", start_order())
def test_units_start_producers_first_and_so_stop_consumers_first(role: str) -> None:
    order = start_order()
    assert after(unit(role)) == set(order[: order.index(role)])
    assert stop_order() == tuple(reversed(order))


@pytest.mark.parametrize("role", MULTIPLE)
def test_a_further_worker_is_ordered_and_told_like_the_first(role: str) -> None:
    first, further = unit(role), unit(role, "@")
    assert after(further) == after(first)
    command = further["Service"]["ExecStart"]
    assert f"worker {role} --instance %i " in command
    same = set(first["Service"]) & set(further["Service"]) - {"ExecStart", "Restart", "Environment"}
    assert {name: first["Service"][name] for name in same} == {
        name: further["Service"][name] for name in same
    }


@pytest.mark.parametrize("role", start_order())
def test_a_unit_leaves_the_stop_to_the_supervisor(role: str) -> None:
    service = unit(role)["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert f"run --role {role} " in service["ExecStart"]
    assert service["RestartPreventExitStatus"].split() == ["2", "77", "78"]


def test_the_target_survives_the_failure_of_a_role() -> None:
    text = (FOLDER / "rsky-pipeline.target").read_text()
    assert "Requires=" not in text
    assert all(f"rsky-{role}.service" in text for role in start_order())
    assert all(read(path)["Unit"]["PartOf"] == "rsky-pipeline.target" for path in SERVICES)


def test_the_example_configuration_is_valid() -> None:
    path = FOLDER / "rsky-pipeline.toml"
    loaded = load(path, {}, {})
    assert set(tomllib.loads(path.read_text())) <= {
        name for name, origin in loaded.origins.items() if origin != "default"
    }


@analyze
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    program = tmp_path / "rsky-pipeline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    files.install(tmp_path, files.shipped(program), dry_run=False)
    folder = tmp_path / files.UNIT_FOLDER
    # systemd cannot start a template as such; an instance is one.
    names = [path.name.replace("@.", "@2.") for path in UNITS]
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
         *(str(folder / name) for name in names)],
        capture_output=True, text=True, timeout=60, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert [line for line in result.stderr.splitlines() if "rsky-" in line] == []
    assert result.returncode == 0, result.stderr


@analyze
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_units_are_hardened(path: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([\d.]+)", result.stdout)
    assert found is not None, result.stderr
    assert float(found.group(1)) <= 3.0


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["systemd", *arguments])
    return result.exit_code, result.output


def test_install_writes_what_is_missing_and_keeps_the_configuration(tmp_path: Path) -> None:
    code, output = invoke("install", "--root", str(tmp_path), "--dry-run")
    assert code == 0
    assert output.count("would create") == len(UNITS) + 3
    assert not any(tmp_path.iterdir())

    code, output = invoke("status", "--root", str(tmp_path))
    assert (code, output.count("missing")) == (3, len(UNITS) + 3)

    code, output = invoke("install", "--root", str(tmp_path), "--json")
    assert code == 0
    assert len(json.loads(output)["done"]) == len(UNITS) + 3
    assert (tmp_path / "etc/sysusers.d/rsky-pipeline.conf").read_text().count("u rsky-pipeline")
    assert "/var/lib/rsky-pipeline" in (tmp_path / "etc/tmpfiles.d/rsky-pipeline.conf").read_text()
    assert invoke("status", "--root", str(tmp_path))[0] == 0

    configuration = tmp_path / files.CONFIGURATION
    configuration.write_text("relay_hosts = ['example.com']\n")
    service = tmp_path / files.UNIT_FOLDER / "rsky-indexer.service"
    service.write_text("old")
    assert invoke("status", "--root", str(tmp_path))[0] == 1
    code, output = invoke("install", "--root", str(tmp_path))
    assert output.splitlines()[0] == f"replace {service}"
    assert "replace" not in output.replace(f"replace {service}", "")
    assert "example.com" in configuration.read_text()


def test_uninstall_leaves_what_is_the_operators(tmp_path: Path) -> None:
    invoke("install", "--root", str(tmp_path))
    code, output = invoke("uninstall", "--root", str(tmp_path))
    assert (code, output.count("remove")) == (0, len(UNITS) + 2)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / files.CONFIGURATION]


def test_units_start_the_configured_program(tmp_path: Path) -> None:
    invoke("install", "--root", str(tmp_path), "--set", "binary_path=/srv/rsky/rsky-pipeline")
    for path in (tmp_path / files.UNIT_FOLDER).glob("*.service"):
        assert read(path)["Service"]["ExecStart"].startswith("/srv/rsky/rsky-pipeline ")


def test_what_systemctl_shows_is_understood(tmp_path: Path) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*list-units*) echo 'rsky-indexer@2.service loaded active running further';;\n"
        "*@2*) printf 'LoadState=loaded\\nActiveState=failed\\nSubState=failed\\n"
        "Result=timeout\\nMainPID=0\\n';;\n"
        "*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nResult=success\\n"
        "MainPID=42\\nExecStart={ path=/usr/local/bin/rsky-pipeline ; argv[]=x }\\n';;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    first, further = Systemd(str(fake)).units("indexer")
    assert (first.name, first.is_up, first.pid) == ("rsky-indexer.service", True, 42)
    assert first.program == Path("/usr/local/bin/rsky-pipeline")
    assert (further.name, further.is_up, further.result) == (
        "rsky-indexer@2.service", False, "timeout",
    )  # fmt: skip


def test_a_reload_needs_no_program_that_a_small_system_lacks() -> None:
    for name in (*((role, "") for role in start_order()), *((role, "@") for role in MULTIPLE)):
        assert unit(*name)["Service"]["ExecReload"].startswith("/bin/sh -c ")


def test_the_last_lines_of_a_unit_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--unit` would end with lines of systemd, such as "Started ...".

    Without its last start, they would be those of the version before, where the new one says
    nothing.
    """
    program = tmp_path / "journalctl"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    name = "rsky-indexer.service"
    state = Unit(name, "loaded", "failed", "failed", "signal", None, None, invocation="b0fa")
    words = Systemd().last_lines(state).split()
    assert "_SYSTEMD_INVOCATION_ID=b0fa" in words
    assert "_SYSTEMD_UNIT=rsky-indexer.service" in words
    assert not any(word.startswith("--unit") for word in words)
