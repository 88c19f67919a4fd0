"""UpdateNotificationSeenRequest: the recorded bytes, and whatever else a client may send."""

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rsky_pipeline.indexer.seen import RESULTS, Seen, read_seen
from rsky_pipeline.network.grpc import GrpcError, GrpcStatus, message_of
from rsky_pipeline.observability.indexer import SEEN_RESULTS
from tests.data import test_data

DID = "did:plc:jvfc3q3sca5bnha7llabvmgj"


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def request(did: bytes = DID.encode(), seconds: int = 1_777_000_000, nanos: int = 0) -> bytes:
    return field(1, did) + field(2, field(1, seconds) + field(2, nanos))


def test_the_recorded_requests_are_read() -> None:
    recorded = json.loads(test_data("bsync/fanout.json").read_text())["grpc_requests"]
    read = {read_seen(message_of(base64.b64decode(each["body_base64"]))) for each in recorded}
    assert read == {Seen(DID, "2026-05-06T07:08:09.123Z")}


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "1970-01-01T00:00:00.000Z"),
        (-1, 999_000_000, "1969-12-31T23:59:59.999Z"),
        (1, 1, "1970-01-01T00:00:01.001Z"),
        (1, 999_999_999, "1970-01-01T00:00:02.000Z"),
        (253_402_300_799, 999_000_000, "9999-12-31T23:59:59.999Z"),
        (-62_135_596_800, 0, "0001-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_written_in_milliseconds(seconds: int, nanos: int, text: str) -> None:
    assert read_seen(request(seconds=seconds, nanos=nanos)) == Seen(DID, text)


def test_defaults_are_left_out_and_unknown_fields_are_skipped() -> None:
    unknown = field(9, 7) + field(10, b"x") + varint(11 << 3 | 1) + bytes(8) + b"\x65" + bytes(4)
    time = field(1, 5)
    expected = Seen(DID, "1970-01-01T00:00:05.000Z")
    assert read_seen(unknown + field(2, time + unknown) + field(1, DID.encode())) == expected
    # A field that is given twice: the last one counts, and messages are merged.
    twice = request(b"did:web:other", 1) + field(1, DID.encode()) + field(2, time)
    assert read_seen(twice) == expected


@pytest.mark.parametrize(
    "message",
    [
        b"",
        field(1, DID.encode()),
        field(2, field(1, 5)),
        request(b"alice.test"),
        request(b"did:plc"),
        request(b"\xff\xfe"),
        request(DID.encode() + b"\0"),
        request(DID.encode() + b"\n"),
        request(b"did:web:" + b"a" * 3_000),
        request(seconds=253_402_300_800),
        request(seconds=253_402_300_799, nanos=999_999_999),
        request(seconds=-62_135_596_801),
        request(seconds=1 << 63),
        request(nanos=1_000_000_000),
        request(nanos=-1),
        field(1, 5) + field(2, 5),
        request()[:-1],
        b"\x0b",
        b"\xff" * 11,
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
)
def test_what_is_no_did_or_time_is_refused(message: bytes) -> None:
    with pytest.raises(GrpcError) as failed:
        read_seen(message)
    assert failed.value.status == GrpcStatus.INVALID_ARGUMENT


@given(st.binary(max_size=80))
@example(request())
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    with suppress(GrpcError):
        assert len(read_seen(message).at) == len("1970-01-01T00:00:00.000Z")


def test_each_outcome_is_counted() -> None:
    assert RESULTS.keys() == set(GrpcStatus)
    assert sorted(RESULTS.values()) == sorted(SEEN_RESULTS)
