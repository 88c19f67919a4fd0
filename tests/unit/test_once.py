"""Mechanisms that exist once: a second copy of one is where faults have come from."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rsky_pipeline

ROOT = Path(rsky_pipeline.__file__).parent
ROLES = ("ingester", "indexer", "backfiller")

# Where a mechanism may stand: the text that gives it away, and files below the package.
ONCE = {
    "names of cursors": (r":cursor:", {"streams/names.py"}),
    "hosts as the settings write them": (
        r"\.(relay|labeler)_hosts\b", {"configuration/settings.py"},
    ),
    "the order of stopping": (
        r"\bstop_order\(",
        {
            "configuration/topology.py", "operations/ordered/flow.py",
            # A supervisor stops by itself too, after a signal.
            "supervisor/control.py", "supervisor/sequence.py",
        },
    ),
    # Where the keys of a command are is known in one place.
    "commands of consumer groups": (
        r'"(XREADGROUP|XAUTOCLAIM|XCLAIM|XACK)"', {"streams/consumer.py", "streams/commands.py"},
    ),
    # The copy of a whole server keeps the ids, while nobody else writes.
    "commands that append": (r'"XADD"', {"streams/copying.py"}),
    "printing to the terminal": (r"click\.(echo|secho)\(|(?<![\w.\"])print\(", {
        "cli/output.py", "development/trace.py", "development/binary.py",
        "development/prerequisites.py",
    }),
    "options of every command": (
        r'\["--(json|config|set)"|option\("--(json|config|set)"', {"cli/command.py"},
    ),
    "pages of listRepos": (r'"listRepos(ByCollection)?\?|_page\(http', {"network/listing.py"}),
    "words of the reasons to fetch a repo": (
        r'"(unseen|reactivated|broken_chain)"',
        {"streams/repo_job.py"},
    ),
    "limits of conditions": (r"\bLimits\((warn|fail)=", {"health/rules.py"}),
    "opening a store where it is missing": (
        r"if self\.(_?\w+) is None:\n\s+self\.\1 = self\._?(open|connect)",
        {
            "runtime/link.py",
            # A command of its own, not a worker of ours.
            "operations/load/writing.py",
        },
    ),
    "retries of a transaction after a conflict": (
        r"except TransactionConflictError",
        {
            "database/isolation.py",
            # One that is counted.
            "indexer/core/apply.py",
            # Waits for a minute for a server that is away as well.
            "operations/load/writing.py",
        },
    ),
}  # fmt: skip

# Handlers of the stores' errors in the roles beside `Link`: none of them waits or connects again.
# Fewer is better: take out of this list what is gone.
STORE_ERRORS = {
    "StoreUnavailableError", "StoreRejectedError", "DatabaseError", "DatabaseUnavailableError",
    "UnavailableError", "StoreError",
}  # fmt: skip
HANDLERS_LEFT = {
    # The link counted and logged it; no defect, and the checks are taken again.
    "indexer/accounts/checks.py": 1,
    # A refusal at the start, which only an operator can end, ends the worker.
    "indexer/role.py": 1,
    # A refusal of one step of cleaning must not keep the other steps.
    "indexer/upkeep.py": 1,
    # Passes it on, past the boundary against answers of hosts.
    "ingester/listing/gap_repair.py": 1,
    # The answer to bsync, whose user waits.
    "indexer/seen.py": 1,
    # Ends the connection to a relay, whose frames are read again from the cursor.
    "ingester/follower.py": 1,
}  # fmt: skip


def python_files(*packages: str) -> Iterator[tuple[str, str]]:
    """Yield the name below the package and the text of each file."""
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if not packages or name.split("/")[0] in packages:
            yield name, path.read_text()


@pytest.mark.parametrize("mechanism", ONCE)
def test_a_mechanism_stands_in_one_place(mechanism: str) -> None:
    pattern, allowed = ONCE[mechanism]
    found = {
        name
        for name, text in python_files()
        if re.search(pattern, text) and not name.startswith("demo/")
    }
    assert found - allowed == set()


def test_scripts_of_the_server_stand_beside_the_consumer() -> None:
    found = {
        path.parent.name
        for path in ROOT.rglob("*.lua")
        if re.search("XACK|XCLAIM", path.read_text())
    }
    assert found == {"streams"}


def handlers(text: str) -> int:
    """Count handlers that name an error of a store."""
    count = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            count += bool(names & STORE_ERRORS)
    return count


def test_roles_leave_the_errors_of_stores_to_their_links() -> None:
    found = {name: count for name, text in python_files(*ROLES) if (count := handlers(text))}
    assert found == HANDLERS_LEFT


@pytest.mark.parametrize("text", ["StoreUnavailableError", "(KeyError, errors.X, DatabaseError)"])
def test_handlers_are_found(text: str) -> None:
    assert handlers(f"try:\n    pass\nexcept {text}:\n    pass\n") == 1
