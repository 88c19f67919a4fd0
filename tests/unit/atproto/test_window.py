"""The window of 150 contiguous frames of the real network, against a foreign oracle."""

import json

from rsky_pipeline.atproto import cbor, dagjson
from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.frame import CommitMessage, Message, decode_frame
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.mst import Change, invert
from tests.data import test_data
from tests.data_frames import corpus_documents, corpus_frames


def _messages() -> list[Message]:
    folder = test_data("fixtures/jetstream/corpus")
    return [decode_frame(frame) for frame in corpus_frames(folder)]


def test_every_frame_decodes() -> None:
    kinds = [type(message).__name__ for message in _messages()]
    assert len(kinds) == 150
    assert kinds.count("CommitMessage") == 148
    assert kinds.count("IdentityMessage") == 1
    assert kinds.count("AccountMessage") == 1


def test_every_signature_verifies_and_every_commit_inverts() -> None:
    documents = corpus_documents(test_data("fixtures/jetstream/corpus"))
    for message in _messages():
        if not isinstance(message, CommitMessage):
            continue
        car = read_car(message.blocks)
        assert car.roots[0] == message.commit
        commit = parse_commit(car.blocks[message.commit])
        assert (commit.did, commit.rev) == (message.did, message.rev)
        key = parse_did_document(documents[message.did], message.did).signing_key
        assert key is not None
        assert verify_commit(commit, key)
        changes = [Change(op.path, op.cid, op.prev) for op in message.ops]
        assert invert(car.blocks, commit.data, changes) == message.prev_data


def test_records_have_the_json_that_production_served() -> None:
    served = {}
    for line in test_data("fixtures/jetstream/corpus/expected_v1.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "commit":
            change = event["commit"]
            path = f"{change['collection']}/{change['rkey']}"
            served[event["did"], change["rev"], path] = change
    seen = set()
    for message in _messages():
        if not isinstance(message, CommitMessage):
            continue
        blocks = read_car(message.blocks).blocks
        for op in message.ops:
            expected = served[message.did, message.rev, op.path]
            seen.add((message.did, message.rev, op.path))
            assert op.action == expected["operation"]
            if op.cid is not None:
                assert str(op.cid) == expected["cid"]
                record = json.loads(dagjson.to_json(cbor.decode(blocks[op.cid])))
                assert record == expected["record"]
    assert seen == set(served)
    assert len(seen) == 150
