"""Accounts and records as people name them, in every command alike."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.network.handles import Handles, HandleUnavailableError
from rsky_pipeline.operations.backfill.adding import RefusedNames, from_file, valid
from rsky_pipeline.operations.subjects import read_subject

DID = "did:plc:w4xbfzo7kqfes5zb7r6qv3rw"
POST = "app.bsky.feed.post"


@pytest.mark.parametrize("account", [DID, "did:web:pds.test", "alice.test"])
def test_every_form_names_the_account(account: str) -> None:
    for text in (
        account, f"@{account}", f"  {account}\n", f"at://{account}", f"at://{account}/",
        f"https://bsky.app/profile/{account}", f"https://bsky.app/profile/{account}/",
        f"https://bsky.app/profile/{account}/followers?x=1#y",
        f"https://main.bsky.dev/profile/{account.replace(':', '%3A')}",
    ):  # fmt: skip
        assert read_subject(text).text == account


@pytest.mark.parametrize("account", [DID, "alice.test"])
def test_every_form_names_the_record(account: str) -> None:
    for path, collection in (
        ("profile/{}/post/3l2", POST), ("profile/{}/post/3l2/liked-by", POST),
        ("profile/{}/feed/3l2", "app.bsky.feed.generator"),
        ("profile/{}/lists/3l2", "app.bsky.graph.list"),
        ("starter-pack/{}/3l2", "app.bsky.graph.starterpack"),
    ):  # fmt: skip
        found = read_subject(f"https://bsky.app/{path.format(account)}")
        assert found.text == f"at://{account}/{collection}/3l2"
    assert read_subject(f"at://{account}/{POST}/3l2").text == f"at://{account}/{POST}/3l2"


def test_handles_are_in_lower_case_and_dids_as_they_are() -> None:
    assert read_subject("Alice.Test").text == "alice.test"
    assert read_subject("did:web:Alice.test").text == "did:web:Alice.test"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no DID, handle"), ("nonsense", "no DID, handle"), ("a b.test", "no DID, handle"),
        ("did:plc:zzz", "is not a DID of an account"), ("@did:plc:zzz", "is not a DID"),
        ("did:key:x", "is not a DID of an account"), ("at://", "no DID, handle"),
        (f"at://{DID}/{POST}", "neither"), (f"at://{DID}/{POST}/a/b", "neither"),
        (f"at://{DID}/post/3l2", "names no record"), (f"at://{DID}/{POST}/..", "names no record"),
        ("https://bsky.app/", "no link"), ("https://bsky.app/search?q=x", "no link"),
        ("https://bsky.app/profile/x", "no DID, handle"),
    ],
)  # fmt: skip
def test_what_names_nobody_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_subject(text)


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def resolve(self: Handles, handle: str) -> str | None:
        if handle == "away.test":
            raise HandleUnavailableError("no answer")
        return {"alice.test": DID}.get(handle)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Handles, "resolve", resolve)


COMMANDS = [
    ["trace"], ["index-repo"], ["db", "compare"], ["db", "recount"], ["db", "rejected"],
    ["backfill", "retry"], ["backfill", "cancel"],
]  # fmt: skip


def invoke(*arguments: str) -> Result:
    stores = ("--redis-url", "redis://127.0.0.1:1", "--database-url", "postgresql://127.0.0.1:1/x")
    return CliRunner().invoke(main, [*arguments, *stores, "--set=plc_url=http://127.0.0.1:1"])


@pytest.mark.usefixtures("handles")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_every_form(command: list[str]) -> None:
    for text in ("Alice.test", "https://bsky.app/profile/alice.test/post/3l2"):
        result = invoke(*command, text)
        assert f"alice.test is {DID}" in result.stderr, result.output
        assert result.exit_code == 69, result.output  # its stores are away
    assert invoke(*command, "nobody.test").exit_code == 2
    assert "nobody.test is the handle of no account" in invoke(*command, "nobody.test").stderr
    away = invoke(*command, "away.test")
    assert (away.exit_code, "cannot be resolved now" in away.stderr) == (69, True)
    assert invoke(*command, "did:plc:zzz").exit_code == 2


@pytest.mark.usefixtures("handles")
@pytest.mark.parametrize(
    "line", [f"db compare --did {DID}", f"db recount --did {DID} --uri at://{DID}/{POST}/3l2",
             f"db rejected --did {DID}", f"backfill retry --did {DID}"],
)  # fmt: skip
def test_the_options_of_before_still_work_and_are_not_shown(line: str) -> None:
    assert invoke(*line.split()).exit_code == 69  # its stores are away
    command = line.split(" --")[0].split()
    shown = CliRunner().invoke(main, [*command, "--help"]).stdout
    assert "--did" not in shown


@pytest.mark.usefixtures("handles")
def test_a_file_may_hold_every_form(tmp_path: Path) -> None:
    file = tmp_path / "accounts.csv"
    other = f"{DID[:-1]}q"
    lines = ("did", DID, "nobody.test", f"https://bsky.app/profile/{other}", "alice.test", "x")
    file.write_text("\n".join(lines))
    refused = RefusedNames()
    assert list(valid(from_file(file), refused, Settings())) == [DID, other, DID]
    assert refused.examples == ["x", "nobody.test"]
