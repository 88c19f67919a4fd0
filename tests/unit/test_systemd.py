"""The units are what systemd understands, and say the same as the program."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from rsky_pipeline.configuration.load import load
from rsky_pipeline.configuration.topology import start_order, stop_order

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".service", ".target"))


def unit(role: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    parser.read(FOLDER / f"rsky-{role}.service")
    return parser


def after(role: str) -> set[str]:
    return {
        match.group(1)
        for word in unit(role)["Unit"]["After"].split()
        if (match := re.fullmatch(r"rsky-(\w+)\.service", word))
    }


def test_there_is_a_unit_for_every_role() -> None:
    names = {path.name for path in UNITS}
    assert names == {f"rsky-{role}.service" for role in start_order()} | {"rsky-pipeline.target"}


@pytest.mark.parametrize("role", start_order())
def test_units_start_producers_first_and_so_stop_consumers_first(role: str) -> None:
    order = start_order()
    assert after(role) == set(order[: order.index(role)])
    assert stop_order() == tuple(reversed(order))


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


def test_the_example_configuration_is_valid() -> None:
    path = FOLDER / "rsky-pipeline.toml"
    loaded = load(path, {}, {})
    assert set(tomllib.loads(path.read_text())) <= {
        name for name, origin in loaded.origins.items() if origin != "default"
    }


def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "rsky-pipeline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copies = []
    for path in UNITS:
        copy = tmp_path / path.name
        text = path.read_text().replace("/opt/rsky-pipeline/bin/rsky-pipeline", str(program))
        copy.write_text(text)
        copies.append(str(copy))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *copies],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in result.stderr.splitlines() if "rsky-" in line]
    assert complaints == []
    assert result.returncode == 0, result.stderr
