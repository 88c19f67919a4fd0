"""Dead letters of all streams: counted, shown, retried, dropped, by the command as by a process."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rsky_pipeline.atproto.frame import CommitMessage, decode_frame, encode_error_frame
from rsky_pipeline.cli import main
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.demo.simulator.clock import stepping_clock
from rsky_pipeline.demo.simulator.world import World
from rsky_pipeline.ingester.frames import MAX_RAW_BYTES, RawDeadLetters
from rsky_pipeline.operations.dead_letters import LETTER_STREAMS, retry, select, tally
from rsky_pipeline.streams.append import Entry, append
from rsky_pipeline.streams.connection import Store, connect
from rsky_pipeline.streams.names import FIREHOSE_RAW_LETTERS, LABEL_RAW_LETTERS
from rsky_pipeline.streams.repo_job import RepoJob, decode_repo_job, encode_repo_job
from tests.consumers import GroupReader
from tests.integration.operations.entries import LIVE, fill, left, post


def run(url: str, *arguments: str, **options: Any) -> Result:
    waits = arguments[0] != "retry" or any(each.startswith("--wait") for each in arguments)
    wait = () if waits else ("--wait=0s",)  # nobody reads here
    command = ["dlq", *arguments, *wait, "--redis-url", url]
    return CliRunner().invoke(main, command, **options)


def bury(store: Store, count: int, reason: str = "bad", stream: str = LIVE) -> None:
    fill(store, [post(number) for number in range(count)], stream)
    reader = GroupReader(store, stream, "g", "c")
    reader.ensure()
    for item in reader.read_new(count, 0):
        reader.dead_letter(item, reason=reason, error=f"why {reason}", attempts=3)


def keep_frame(store: Store, raw: bytes, reason: str = "old", stream: str | None = None) -> None:
    quarantine = RawDeadLetters(stream or FIREHOSE_RAW_LETTERS)
    entry = quarantine.entry(raw, host="relay.example.com", reason=reason, error="was refused")
    assert entry is not None
    append(store, [entry])


def commit_frames(count: int) -> list[bytes]:
    """Return frames of commits that write something indexed, all of them readable."""
    world = World(3, 20, stepping_clock(1_700_000_000_000_000, 1_000))
    found: list[bytes] = []
    while len(found) < count:
        frame = world.step()
        message = decode_frame(frame)
        if isinstance(message, CommitMessage) and any("app.bsky" in op.path for op in message.ops):
            found.append(frame)
    return found


def test_every_dead_letter_stream_is_known() -> None:
    expected = {"firehose_live_dlq", "firehose_backfill_dlq", "label_live_dlq", "repo_backfill_dlq",
                "firehose_raw_dlq", "label_raw_dlq"}  # fmt: skip
    assert expected <= set(LETTER_STREAMS)


def test_list_counts_by_stream_and_reason(store: Store, clean_redis: str) -> None:
    bury(store, 3)
    bury(store, 130, "worse")
    bury(store, 1, stream="firehose_backfill")
    keep_frame(store, b"nonsense", "invalid_cbor")
    document = json.loads(run(clean_redis, "list", "--json").stdout)
    assert document["total"] == 135
    counts = {(each["stream"], each["reason"]): each["count"] for each in document["letters"]}
    assert counts == {
        ("firehose_live_dlq", "worse"): 130, ("firehose_live_dlq", "bad"): 3,
        ("firehose_backfill_dlq", "bad"): 1, ("firehose_raw_dlq", "invalid_cbor"): 1,
    }  # fmt: skip
    assert all(each["oldest_time"] <= each["newest_time"] for each in document["letters"])
    assert "worse" in run(clean_redis, "list", "firehose_live").stdout
    assert run(clean_redis, "list", "label_live").stdout == "no dead letters\n"
    assert run(clean_redis, "list", "nonsense").exit_code == 2


def test_show_is_bounded_and_summarises_frames(store: Store, clean_redis: str) -> None:
    bury(store, 20)
    fill(store, [post(1, "x" * 100_000)])
    reader = GroupReader(store, LIVE, "g", "c")
    for item in reader.read_new(1, 0):
        reader.dead_letter(item, reason="long", error="", attempts=1)
    (frame,) = commit_frames(1)
    keep_frame(store, frame)
    shown = json.loads(run(clean_redis, "show", LIVE, "--count", "5", "--json").stdout)["letters"]
    assert len(shown) == 5
    assert json.loads(shown[0]["entry"]["event"])["type"] == "create"
    assert (shown[0]["reason"], shown[0]["error"], shown[0]["attempts"]) == ("bad", "why bad", 3)
    result = run(clean_redis, "show", LIVE, "--reason", "long")
    assert len(result.stdout) < 5_000
    (raw,) = json.loads(run(clean_redis, "show", "firehose_raw_dlq", "--json").stdout)["letters"]
    assert (raw["reason"], raw["entry"]["type"]) == ("old", "commit")
    assert raw["entry"]["operations"]
    assert frame.hex()[:40] not in json.dumps(raw)


def test_retry_takes_one_reason_and_leaves_the_rest(store: Store, clean_redis: str) -> None:
    bury(store, 250)
    bury(store, 3, "other")
    result = run(clean_redis, "retry", LIVE, "--reason", "bad", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["streams"]["firehose_live_dlq"]["retried"] == 250
    assert left(store) == [post(number) for number in range(250)]
    assert [(each.reason, each.count) for each in tally(store, "firehose_live_dlq")] == [
        ("other", 3)
    ]
    assert run(clean_redis, "retry").exit_code == 2


def test_what_fails_again_while_it_is_retried_is_not_met_twice(store: Store) -> None:
    bury(store, 150)
    letters = select(store, "firehose_live_dlq")
    first = next(letters)
    bury(store, 1, "again")

    def rest() -> Any:
        yield first
        yield from letters

    assert retry(store, "firehose_live_dlq", rest(), Settings()).retried == 150
    assert [each.reason for each in tally(store, "firehose_live_dlq")] == ["again"]


def test_a_raw_frame_is_converted_again_in_one_step(store: Store, clean_redis: str) -> None:
    for frame in commit_frames(5):
        keep_frame(store, frame)
    keep_frame(store, b"still nonsense")
    keep_frame(store, commit_frames(1)[0] + bytes(MAX_RAW_BYTES))
    result = run(clean_redis, "retry", "firehose_raw_dlq", "--json", "--set", "verify=none")
    assert result.exit_code == 1
    document = json.loads(result.stdout)["streams"]["firehose_raw_dlq"]
    assert (document["retried"], document["kept"]) == (5, 2)
    reasons = " ".join(each["why"] for each in document["examples"])
    assert "bytes were kept" in reasons
    events = [json.loads(payload) for payload in left(store)]
    assert {event["type"] for event in events} <= {"create", "update", "delete"}
    assert len({event["rev"] for event in events}) == 5
    assert len(left(store, FIREHOSE_RAW_LETTERS)) == 2


def test_where_signatures_are_checked_the_repo_is_fetched_instead(
    store: Store, clean_redis: str
) -> None:
    keep_frame(store, commit_frames(1)[0])
    result = run(clean_redis, "retry", "firehose_raw_dlq", "--set", "verify=signature")
    assert result.exit_code == 0
    assert left(store) == []
    jobs = [
        decode_repo_job(payload)
        for stream in ("repo_backfill", "repo_backfill_high")
        for payload in left(store, stream)
    ]
    assert [type(job) for job in jobs] == [RepoJob]
    assert jobs[0].did.startswith("did:plc:")


def test_label_frames_are_converted_again(store: Store, clean_redis: str) -> None:
    world = World(3, 20, stepping_clock(1_700_000_000_000_000, 1_000))
    world.add_history(20)
    frame = world.labeler.step()
    keep_frame(store, frame, stream=LABEL_RAW_LETTERS)
    assert run(clean_redis, "retry", "label_raw_dlq").exit_code == 0
    assert len(left(store, "label_live")) == 1
    keep_frame(store, encode_error_frame("x", "y"), stream=LABEL_RAW_LETTERS)
    assert run(clean_redis, "retry", "--all").exit_code == 0  # an error frame means nothing more
    assert left(store, LABEL_RAW_LETTERS) == []


def test_a_letter_without_a_body_stays(store: Store, clean_redis: str) -> None:
    store.call("XADD", "firehose_live_dlq", "*", "reason", "lost", "attempts", "1")
    result = run(clean_redis, "retry", LIVE)
    assert result.exit_code == 1
    assert "nothing to try again" in result.stderr


def test_drop_asks_and_says_what_is_lost(store: Store, clean_redis: str) -> None:
    bury(store, 3)
    bury(store, 2, "other")
    refused = run(clean_redis, "drop", LIVE, "--reason", "bad")
    assert refused.exit_code == 2
    assert "3 of firehose_live_dlq (bad" in refused.stderr
    assert len(left(store, "firehose_live_dlq")) == 5
    result = run(clean_redis, "drop", LIVE, "--reason", "bad", "--yes")
    assert (result.exit_code, result.stdout) == (0, "dropped 3\n")
    assert [(each.reason, each.count) for each in tally(store, "firehose_live_dlq")] == [
        ("other", 2)
    ]
    document = run(clean_redis, "drop", "--all", "--yes", "--json").stdout
    assert json.loads(document) == {"dropped": {"firehose_live_dlq": 2}}


def test_letters_of_the_original_services_are_read(store: Store, clean_redis: str) -> None:
    job = b'{"did":"did:plc:w4xbfzo7kqfes5zb7r6qv3rw","host":"h","rev":"r","active":true}'
    store.call("XADD", "repo_backfill_dlq", "*", "repo", job, "reason", "HTTP 500", "attempts", "3")
    assert run(clean_redis, "retry", "repo_backfill").exit_code == 0
    assert left(store, "repo_backfill") == [job]


def test_the_command_as_a_process_ends_with_69_without_redis() -> None:
    command = [sys.executable, "-m", "rsky_pipeline", "dlq", "list"]
    result = subprocess.run(
        [*command, "--redis-url", "redis://127.0.0.1:1"],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 69
    assert len(result.stderr.splitlines()) == 1


def test_a_repo_that_is_retried_has_all_its_attempts_again(store: Store, clean_redis: str) -> None:
    did = "did:plc:w4xbfzo7kqfes5zb7r6qv3rw"
    job = RepoJob(did, "h", "", None, True, deleted=("app.bsky.feed.post/1",), attempts=2)
    store.call("XADD", "repo_backfill_high_dlq", "*", "repo", encode_repo_job(job),
               "reason", "timeout", "error", "x", "attempts", "3")  # fmt: skip
    assert run(clean_redis, "retry", "repo_backfill_high").exit_code == 0
    (payload,) = left(store, "repo_backfill_high")
    assert decode_repo_job(payload) == replace(job, attempts=0)
    assert left(store, "repo_backfill_high_dlq") == []


@pytest.mark.parametrize("stream", ["firehose_live", "x"])
def test_replacing_a_letter_is_all_or_nothing(store: Store, stream: str) -> None:
    from rsky_pipeline.streams.dead_letters import replace_dead_letter
    from rsky_pipeline.streams.errors import StoreRejectedError

    letter = store.call("XADD", FIREHOSE_RAW_LETTERS, "*", "frame", "{}").decode()
    store.call("SET", "other", "no stream")
    entries = [Entry(stream, b"event", b"1"), Entry("other", b"event", b"2")]
    with pytest.raises(StoreRejectedError):
        replace_dead_letter(store, FIREHOSE_RAW_LETTERS, letter, entries)
    assert left(store, stream) == []
    assert replace_dead_letter(store, FIREHOSE_RAW_LETTERS, letter, entries[:1])
    assert not replace_dead_letter(store, FIREHOSE_RAW_LETTERS, letter, entries[:1])
    assert left(store, stream) == [b"1"]


def test_show_without_a_stream_shows_all(store: Store, clean_redis: str) -> None:
    bury(store, 2)
    bury(store, 1, "other", "firehose_backfill")
    document = json.loads(run(clean_redis, "show", "--json").stdout)
    assert document["stream"] is None
    assert [each["stream"] for each in document["letters"]] == [
        *["firehose_live_dlq"] * 2, "firehose_backfill_dlq",
    ]  # fmt: skip
    assert len(json.loads(run(clean_redis, "show", "--json", "--limit=1").stdout)["letters"]) == 1
    assert "firehose_backfill_dlq" in run(clean_redis, "show", "--reason=other").stdout


def test_retry_says_what_came_back(store: Store, clean_redis: str) -> None:
    bury(store, 3)
    ended = Event()

    def consume() -> None:
        """Refuse the first and finish the others, as a worker does."""
        with closing(connect(clean_redis, name="worker")) as own:
            working = GroupReader(own, LIVE, "g", "c")
            while not ended.wait(0.02):
                for number, item in enumerate(working.read_new(10, 0)):
                    if number == 0:
                        working.dead_letter(item, reason="still", error="bad", attempts=1)
                    else:
                        working.acknowledge([item.id])

    worker = Thread(target=consume)
    worker.start()
    try:
        result = run(clean_redis, "retry", LIVE, "--json", "--wait=60s")
        assert result.exit_code == 1
        document = json.loads(result.stdout)
        assert document["streams"]["firehose_live_dlq"]["retried"] == 3
        assert (document["came_back"], document["tried"]) == (1, True)
        (back,) = document["came_back_examples"]
        assert (back["stream"], back["reason"]) == ("firehose_live_dlq", "still")
        result = run(clean_redis, "retry", LIVE, "--wait=60s")
        assert result.stdout == "retried 1, came back 1, kept 0\n"
        assert "came back: still: bad" in result.stderr
    finally:
        ended.set()
        worker.join()


def test_where_nobody_reads_the_retry_says_that_nothing_was_tried(
    store: Store, clean_redis: str
) -> None:
    bury(store, 1)
    result = run(clean_redis, "retry", LIVE, "--wait=0s")
    assert (result.exit_code, result.stdout) == (0, "retried 1, came back 0, kept 0\n")
    assert "not all have been tried yet" in result.stderr


def test_a_letter_is_edited_and_put_back(store: Store, clean_redis: str) -> None:
    bury(store, 2)
    first, second = select(store, "firehose_live_dlq")

    def edit(text: str, letter: str = first.id, stream: str = LIVE) -> Result:
        return run(clean_redis, "edit", stream, letter, "--file=-", "--wait=0s", input=text)

    for text, why in (("{", "is not JSON"), ("[]", "no JSON object")):
        result = edit(text)
        assert (result.exit_code, why in result.stderr) == (2, True)
    assert edit("{}", "1-1").exit_code == 2
    result = edit('{"seq": 5}')
    assert (result.exit_code, result.stdout) == (0, "retried 1, came back 0, kept 0\n")
    assert left(store) == [b'{"seq":5}']
    assert [each.id for each in select(store, "firehose_live_dlq")] == [second.id]
    store.call("XADD", "repo_backfill_dlq", "1-1", "repo", "{}", "reason", "x")
    assert edit('{"did": 1}', "1-1", "repo_backfill").exit_code == 2
    assert len(list(select(store, "repo_backfill_dlq"))) == 1


def test_an_editor_that_changes_nothing_does_nothing(
    store: Store, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(store, 1)
    (letter,) = select(store, "firehose_live_dlq")
    monkeypatch.setenv("EDITOR", "true")
    result = run(clean_redis, "edit", LIVE, letter.id)
    assert (result.exit_code, result.stdout) == (0, "unchanged; nothing was done\n")
    monkeypatch.setenv("EDITOR", "sed -i s/create/update/")
    assert run(clean_redis, "edit", LIVE, letter.id, "--wait=0s").exit_code == 0
    assert b'"update"' in left(store)[0]
