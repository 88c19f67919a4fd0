"""The list of planted bugs (`make mutate`) does not rot."""

import re
from pathlib import Path

import pytest

from tests.mutation.__main__ import planted, table
from tests.mutation.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted_and_its_tests_exist(bug: Bug) -> None:
    assert planted((ROOT / bug.file).read_text(), bug)
    assert bug.tests
    for test in bug.tests:
        file, _, name = test.partition("::")
        assert not name or re.search(rf"def {name}\b", (ROOT / file).read_text())


def test_the_documented_score_is_that_of_the_list() -> None:
    """Every bug of the list is killed, or the list and the page change."""
    assert table([(bug, True) for bug in BUGS]) in (ROOT / "docs" / "testing.md").read_text()


def test_names_are_unique() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
