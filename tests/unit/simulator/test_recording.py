"""Recordings: frames with their lengths in either order, plain or compressed, and their company."""

import json
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.demo.simulator.recording import RecordingError, load_recording, split_frames
from tests.data import test_data
from tests.unit.simulator.networks import small_world


def joined(frames: list[bytes], order: str) -> bytes:
    return b"".join(struct.pack(f"{order}I", len(frame)) + frame for frame in frames)


@given(
    frames=st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=6),
    order=st.sampled_from("<>"),
)
def test_frames_are_found_in_either_byte_order(frames: list[bytes], order: str) -> None:
    assert split_frames(joined(frames, order)) == frames


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00\x05abc", joined([b"abc"], ">") + b"\x01"])
def test_what_is_no_file_of_frames_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a file of frames"):
        split_frames(data)


def test_a_recording_is_more_than_its_frames(tmp_path: Path) -> None:
    world = small_world()
    account = world.accounts[0]
    frames = [world.step() for _ in range(50)]
    document = world.document(account.did, "https://old.example.com", "")
    (tmp_path / "frames.zst").write_bytes(zstandard.compress(joined(frames, "<")))
    (tmp_path / "labels.frames").write_bytes(joined([world.labeler.step()], ">"))
    (tmp_path / "dids.json").write_text(json.dumps({account.did: document}))
    (tmp_path / "handles.json").write_text(json.dumps({account.handle: account.did}))
    head, rev = str(account.repo.head), account.repo.rev
    page = {"repos": [{"did": account.did, "head": head, "rev": rev, "active": True}]}
    (tmp_path / "listRepos.json").write_text(json.dumps([page]))
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / "a.car").write_bytes(world.car(account.did))
    index = [{"did": account.did, "status": {"active": True, "rev": rev}, "file": "a.car"}]
    (tmp_path / "cars" / "index.json").write_text(json.dumps(index))

    recording = load_recording(tmp_path / "frames.zst")
    assert [frame for _, frame in recording.frames] == frames
    assert recording.frames[-1][0] == world.seq
    assert len(recording.labels) == 1
    assert recording.handles == {account.handle: account.did}
    served = recording.document(account.did, "http://here", "http://labels")
    assert served is not None
    assert served["service"][0]["serviceEndpoint"] == "http://here"
    assert served["verificationMethod"] == (document or {})["verificationMethod"]
    assert recording.document("did:plc:nobody", "", "") is None
    status = recording.status(account.did)
    assert status is not None
    assert (status.head, status.rev, status.active) == (head, rev, True)
    assert recording.statuses() == [status]
    assert recording.car(account.did) == world.car(account.did)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("frames", b"nonsense", "not a file of frames"),
        ("frames", joined([b"nonsense"] * 2, ">"), "frames"),
        ("frames", b"\x28\xb5\x2f\xfd broken", "frames"),
        ("dids.json", b"{", "dids.json"),
    ],
)
def test_a_broken_recording_is_told_with_its_file(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / "frames").write_bytes(b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=told):
        load_recording(tmp_path / "frames")


def test_the_recorded_networks_can_be_loaded() -> None:
    official = load_recording(test_data("recorded/firehose.frames"))
    assert (len(official.frames), len(official.labels), len(official.cars)) == (3_573, 68, 40)
    assert len(official.documents) >= 46
    real = load_recording(test_data("fixtures/jetstream/corpus/frames.bin.zst"))
    assert (len(real.frames), len(real.documents)) == (150, 148)
