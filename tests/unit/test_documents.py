"""The generated parts of the documentation are what the declarations say."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main
from rsky_pipeline.cli.exit_codes import MEANINGS, ExitCode
from rsky_pipeline.configuration.settings import declarations
from rsky_pipeline.development.documents import ROOT, pages, replaced
from tests.official.appview import programs
from tests.official.installation import HERE, RELEASES
from tests.real.servers import PACKAGES


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_pages_are_current(path: Path) -> None:
    assert path.read_text() == pages()[path], f"{path.relative_to(ROOT)}: run `make docs`"


def test_a_part_is_replaced_whole_and_nothing_else() -> None:
    page = "above\n<!-- generated: x (make docs) -->\n<<<<<<< old\nold\n<!-- end: x -->\nbelow\n"
    once = replaced(page, "x", r"new \1")
    assert once == ("above\n<!-- generated: x (make docs) -->\nnew \\1\n<!-- end: x -->\nbelow\n")
    assert replaced(once, "x", r"new \1") == once


@pytest.mark.parametrize("page", ["no markers", "<!-- end: x -->\n", ""])
def test_a_page_without_the_markers_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="exactly one part"):
        replaced(page, "x", "new")


def test_every_setting_and_exit_code_has_its_row() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for name in declarations():
        assert f"| `{name}` |" in text
    assert list(MEANINGS) == list(ExitCode)
    for code in ExitCode:
        assert f"| {code.value} |" in text


def test_help_names_every_exit_code() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    _, _, codes = text.partition("Exit codes:")
    told = {int(number) for number in re.findall(r"\d+", codes)}
    assert told == {code.value for code in ExitCode}


def test_the_packages_of_real_servers_are_named() -> None:
    found = re.search(
        r"^ +apt-get install (.+)$", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE
    )
    assert found is not None
    named = {word for word in found[1].split() if not word.startswith("-")}
    assert named == set(" ".join(PACKAGES.values()).split())


def test_every_target_of_make_is_described() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    help_text = re.findall(r"make ([a-z-]+)", (ROOT / "Makefile").read_text())
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(phony[1].split()) - {"help"}:
        assert target in help_text
        assert f"| `make {target}`" in page


def test_the_page_on_appviews_names_the_newest_release_that_is_tried() -> None:
    page = (ROOT / "docs" / "appview.md").read_text()
    lock = json.loads((HERE / "releases" / RELEASES[-1] / "package-lock.json").read_text())
    for package in ("bsky", "bsync"):
        version = lock["packages"][f"node_modules/@atproto/{package}"]["version"]
        assert f"@atproto/{package}@{version}" in page
    assert f"db init --appview {RELEASES[-1]}" in page
    assert set(programs()) == {
        f"{name}.{kind}" for name in ("appview", "bsync", "dataplane") for kind in ("env", "mjs")
    }
