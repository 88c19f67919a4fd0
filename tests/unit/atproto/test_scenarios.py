"""Scripted streams of another implementation: chains of commits, and commits of before Sync 1.1."""

import json
from typing import Any

import pytest

from rsky_pipeline.atproto.car import read_car
from rsky_pipeline.atproto.commit import parse_commit, verify_commit
from rsky_pipeline.atproto.crypto import PublicKey
from rsky_pipeline.atproto.errors import IncompleteTreeError
from rsky_pipeline.atproto.frame import CommitMessage, Message, decode_frame, encode_frame
from rsky_pipeline.atproto.mst import invert
from tests.data import test_data
from tests.unit.atproto.dagjson_values import from_json


def _message(body: dict[str, Any], kind: str = "#commit") -> Message:
    return decode_frame(encode_frame(kind, from_json(body)))


def _scenario(name: str) -> tuple[list[Message], dict[str, PublicKey], list[bool]]:
    """Return the messages of a scenario, the keys of its accounts, and what is to be dropped."""
    scenario = json.loads(test_data(f"fixtures/indigo/relay-scenarios/{name}.json").read_text())
    keys = {
        account["identity"]["did"]: PublicKey.parse(
            account["identity"]["keys"]["atproto"]["publicKeyMultibase"],
            account["identity"]["keys"]["atproto"]["type"],
        )
        for account in scenario["accounts"]
    }
    frames = [item["frame"] for item in scenario["messages"]]
    messages = [_message(frame["body"], frame["header"]["t"]) for frame in frames]
    return messages, keys, [item["drop"] for item in scenario["messages"]]


def _commits(messages: list[Message]) -> list[CommitMessage]:
    commits = [message for message in messages if isinstance(message, CommitMessage)]
    assert commits
    return commits


def _verified(message: CommitMessage, keys: dict[str, PublicKey]) -> bool:
    car = read_car(message.blocks)
    commit = parse_commit(car.blocks[message.commit])
    assert (car.roots[0], commit.did, commit.rev) == (message.commit, message.did, message.rev)
    return verify_commit(commit, keys[message.did])


def test_a_chain_of_commits() -> None:
    messages, keys, _ = _scenario("post_lifecycle")
    commits = _commits(messages)
    assert len(commits) == 6
    assert max(len(message.ops) for message in commits) == 3
    before: CommitMessage | None = None
    for message in commits:
        assert _verified(message, keys)
        car = read_car(message.blocks)
        data = parse_commit(car.blocks[message.commit]).data
        assert invert(car.blocks, data, message.ops) == message.prev_data
        if before is not None:
            assert message.since == before.rev
            assert (
                message.prev_data
                == parse_commit(read_car(before.blocks).blocks[before.commit]).data
            )
        before = message


def test_a_chain_without_the_fields_of_sync_1_1() -> None:
    messages, keys, _ = _scenario("post_lifecycle_legacy")
    commits = _commits(messages)
    assert all(_verified(message, keys) for message in commits)
    assert all(message.prev_data is None for message in commits)


def test_a_chain_with_repeated_numbers() -> None:
    messages, keys, drop = _scenario("seq_ordering")
    assert all(_verified(message, keys) for message in _commits(messages))
    highest, dropped = 0, []
    for message in messages:
        seq = getattr(message, "seq", None)
        assert isinstance(seq, int)
        dropped.append(seq <= highest)
        highest = max(highest, seq)
    assert dropped == drop
    assert dropped.count(True) == 2


def test_a_commit_verifies_with_its_own_key_only() -> None:
    messages, keys, _ = _scenario("legacy")
    commits = _commits(messages)
    assert all(_verified(message, keys) for message in commits)
    other = PublicKey.parse("did:key:zQ3shbzd9YoCFQrzfdw2AGpxUHTjUhh69MXRh7hHBavx9wQon")
    assert not any(_verified(message, dict.fromkeys(keys, other)) for message in commits)


@pytest.mark.parametrize(
    ("number", "ops", "inverts"),
    [
        (4621317030, 1, False),
        (4621317332, 1, False),
        (4621332152, 42, True),
        (4623075231, 1, True),
    ],
)
def test_partial_commits_of_another_host(number: int, ops: int, inverts: bool) -> None:
    name = f"fixtures/indigo/partial-commits/firehose_commit_{number}.json"
    (message,) = _commits([_message(json.loads(test_data(name).read_text()))])
    assert len(message.ops) == ops
    assert message.prev_data is None
    car = read_car(message.blocks)
    data = parse_commit(car.blocks[message.commit]).data
    assert data in car.blocks
    if inverts:  # to what, nobody knows: such commits do not say what was before
        assert invert(car.blocks, data, message.ops) != data
    else:
        with pytest.raises(IncompleteTreeError):
            invert(car.blocks, data, message.ops)
