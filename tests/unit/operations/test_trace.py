"""What the places together say about a record, from made-up findings."""

from dataclasses import replace

import pytest

from rsky_pipeline.operations.diagnosis import diagnose
from rsky_pipeline.operations.subjects import read_subject
from rsky_pipeline.operations.trace import (
    AtPds,
    Firehose,
    InDatabase,
    InRedis,
    InStream,
    Searched,
    Traced,
    TracedLetter,
)

URI = "at://did:plc:w4xbfzo7kqfes5zb7r6qv3rw/app.bsky.feed.post/3m4ra7cs75s2z"
ACTOR = {"handle": "h", "status": None, "taken_down": None}
RECORD = {"cid": "c", "rev": "3l1", "indexed_at": "t", "taken_down": None}
INDEXED = InDatabase(record=RECORD, actor=ACTOR, main_table="post", tables={"post": 1})
ABSENT = InDatabase(actor=ACTOR, main_table="post")
BLOCK = {"kind": "account", "subject": "did:plc:x", "since": "t", "reason": "spam"}
HAS = AtPds("https://pds", "h", "3l9", None, True, "c")


def found(database: InDatabase = ABSENT, pds: AtPds = HAS, redis: InRedis | None = None,
          firehose: Firehose | None = None, subject: str = URI) -> Traced:  # fmt: skip
    return Traced(
        read_subject(subject), pds, firehose or Firehose(2.0, 1.0), redis or InRedis(), database
    )


def entry(**groups: str) -> InStream:
    return InStream("firehose_live", "1-0", "t", "create", "3l1", groups)


def test_the_seeds_missing_post() -> None:
    """At its PDS, passed by the firehose, trimmed from the stream, in no table."""
    verdict = diagnose(found())
    assert verdict.state == "missing"
    assert "the ingester has read beyond it, so it will not arrive by itself" in verdict.reasons
    assert "index-repo did:plc:w4xbfzo7kqfes5zb7r6qv3rw" in verdict.remedy


def test_an_indexed_record_is_visible() -> None:
    assert diagnose(found(INDEXED)).state == "visible"
    flagged = replace(INDEXED, flags={"violatesThreadGate": True})
    assert "thread gate" in diagnose(found(flagged)).reasons[1]


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        (replace(INDEXED, record={**RECORD, "taken_down": "mod"}), "the record was taken down"),
        (replace(INDEXED, actor={**ACTOR, "status": "deactivated"}), "account is deactivated"),
        (replace(INDEXED, actor={**ACTOR, "taken_down": "mod"}), "the account was taken down"),
        (replace(INDEXED, actor=None), "no row in actor"),
        (replace(INDEXED, tables={}), "no row in post"),
        (replace(INDEXED, tables={}, duplicate_of="at://x"), "a duplicate: at://x stands"),
        (replace(INDEXED, labels=({"val": "!takedown", "src": "did:l", "uri": URI},)), "did:l"),
    ],
)
def test_why_an_indexed_record_is_hidden(database: InDatabase, reason: str) -> None:
    verdict = diagnose(found(database))
    assert verdict.state == "hidden"
    assert reason in verdict.reasons[0]


def test_what_is_in_a_stream_is_on_its_way() -> None:
    waiting = found(redis=InRedis((entry(firehose_group="pending with w for 3 s, ..."),)))
    assert diagnose(waiting).state == "on_its_way"
    assert "pending with w" in diagnose(waiting).reasons[0]
    assert diagnose(found(redis=InRedis((entry(firehose_group="done"),)))).state == "missing"
    assert diagnose(found(redis=InRedis((entry(),)))).state == "on_its_way"


def test_dead_letters_tell_their_reason() -> None:
    letter = TracedLetter("firehose_live", "5-0", "t", "too_long", "text has 9 bytes", 1)
    verdict = diagnose(found(redis=InRedis(letters=(letter,))))
    assert verdict.state == "dead_letter"
    assert "too_long: text has 9 bytes" in verdict.reasons[0]
    assert "dlq retry firehose_live" in verdict.remedy


@pytest.mark.parametrize(
    ("database", "pds", "firehose", "state"),
    [
        (replace(ABSENT, tombstone={"rev": "3l2", "deleted_at": "t"}),
         replace(HAS, present=False), None, "deleted"),
        (replace(ABSENT, tombstone={"rev": "3l2", "deleted_at": "t"}), HAS, None, "missing"),
        (ABSENT, replace(HAS, present=False, cid=None), None, "not_there"),
        (ABSENT, AtPds("p", state="RepoDeactivated"), None, "not_there"),
        (ABSENT, AtPds("p", problem="timeout"), None, "unknown"),
        (ABSENT, HAS, Firehose(2.0, 1.0, selected=False), "not_selected"),
        (InDatabase(problem="away"), HAS, None, "unknown"),
        (INDEXED, replace(HAS, cid="other"), None, "outdated"),
        (replace(ABSENT, blocks=(BLOCK,)), HAS, None, "blocked"),
        (replace(INDEXED, blocks=(BLOCK,)), HAS, None, "visible"),
        (replace(ABSENT, actor=None, erased="3m1"), HAS, None, "deleted"),
        (replace(ABSENT, erased="3l1"), HAS, None, "missing"),
        (INDEXED, replace(HAS, present=False, cid=None), None, "outdated"),
    ],
)  # fmt: skip
def test_states(database: InDatabase, pds: AtPds, firehose: Firehose | None, state: str) -> None:
    assert diagnose(found(database, pds, firehose=firehose)).state == state


def test_an_incomplete_search_says_so() -> None:
    cut = InRedis(searched=(Searched("firehose_live", 10, 100),))
    assert any("not everything" in reason for reason in diagnose(found(redis=cut)).reasons)


def test_accounts() -> None:
    did = URI.split("/")[2]
    good = replace(INDEXED, records={"app.bsky.feed.post": 2}, synced_rev="3l9")
    assert diagnose(found(good, subject=did)).state == "visible"
    behind = diagnose(found(replace(good, synced_rev="3l1"), subject=did))
    assert behind.state == "visible"
    assert "index-repo" in behind.remedy
    assert diagnose(found(replace(good, actor=None), subject=did)).state == "missing"
    gone = replace(good, actor={**ACTOR, "status": "takendown"})
    assert diagnose(found(gone, subject=did)).state == "hidden"


def test_blocked_and_erased_accounts() -> None:
    did = URI.split("/")[2]
    nothing = InDatabase(actor=None)
    blocked = diagnose(found(replace(nothing, blocks=(BLOCK,)), subject=did))
    assert blocked.state == "blocked"
    assert "blocked since t (spam)" in blocked.reasons[0]
    assert "`rsky-pipeline block remove did:plc:x`" in blocked.remedy
    host = {**BLOCK, "kind": "host", "subject": ".example.com"}
    collection = {**BLOCK, "kind": "collection", "subject": "com.example."}
    both = diagnose(found(replace(nothing, blocks=(host, collection)), subject=did))
    assert "`rsky-pipeline block remove --host '*.example.com'`" in both.remedy
    assert "`rsky-pipeline block remove --collection 'com.example.*'`" in both.remedy
    erased = diagnose(found(replace(nothing, erased="3m1"), subject=did))
    assert (erased.state, erased.remedy) == ("deleted", "")
    assert any("erased up to 3m1" in reason for reason in erased.reasons)
    assert diagnose(found(replace(nothing, erased="3l1"), subject=did)).state == "missing"
