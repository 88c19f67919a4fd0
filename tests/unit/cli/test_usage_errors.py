"""Every wrong option is one clear line on standard error, and exit code 2."""

import pytest
from click.testing import CliRunner

from rsky_pipeline.cli import main


@pytest.mark.parametrize(
    ("line", "telling"),
    [
        ("--verbose", "--verbose"),
        ("statis", "statis"),
        ("status --jsn", "--jsn"),
        ("run --role indxer", "'indxer' is not one of"),
        ("stop --timeout -1", "-1.0 is not in the range"),
        ("restart foo", "'foo' is not one of"),
        ("streams trimm firehose_live", "trimm"),
        ("streams trim", "STREAM"),
        ("simulate --rate", "--rate"),
        ("index-repo did:plc:zzz", "'did:plc:zzz' is not a DID"),
        ("index-repo did:plc:w4xbfzo7kqfes5zb7r6qv3r1", "is not a DID"),
        ("db compare --did did:plc:zzz", "'did:plc:zzz' is not a DID"),
        ("deploy FILE --purge firehose_live:repos", "known are firehose_live:repo"),
        ("deploy FILE --purge firehose_liv:repo", "known are firehose_live:repo"),
        ("deploy FILE --purge firehose_live:create", "known are firehose_live:repo"),
        ("deploy FILE --purge firehose_live", "known are firehose_live:repo"),
    ],
)
def test_a_wrong_line_is_answered_with_one(line: str, telling: str) -> None:
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    (answer,) = result.stderr.splitlines()
    assert answer.startswith("rsky-pipeline: ")
    assert telling in answer
    assert "--help`" in answer


def test_a_command_without_its_subcommand_shows_the_help() -> None:
    result = CliRunner().invoke(main, ["streams"])
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
