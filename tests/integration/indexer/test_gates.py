"""Thread and post gates: who may reply and quote, in any order of arrival (golden cases)."""

from typing import Any

import pytest

from tests.integration.indexer.kit import (
    Network,
    Put,
    Tables,
    did_of,
    mention,
    notes_of,
)

THREADGATE = "app.bsky.feed.threadgate"
POSTGATE = "app.bsky.feed.postgate"


def gate(net: Network, post: Put, collection: str = THREADGATE, **fields: Any) -> Put:
    return net.put(post.who, collection, {"post": post.uri, **fields}, rkey=post.rkey)


def test_a_thread_gate_lets_only_some_reply(tables: Tables, net: Network) -> None:
    root = net.post("alice", facets=mention("dan"))
    rules = [{"$type": f"{THREADGATE}#mentionRule"}, {"$type": f"{THREADGATE}#followingRule"}]
    events = [root, gate(net, root, allow=rules), net.follow("alice", "carol")]
    replies = {who: net.reply(who, root) for who in ("bob", "carol", "dan", "alice")}
    tables.apply(*events, *replies.values())
    verdicts = dict(tables.rows("post", 'creator, "violatesThreadGate"', '"replyRoot" IS NOT NULL'))
    assert verdicts == {
        did_of("bob"): True, did_of("carol"): None, did_of("dan"): None, did_of("alice"): None,
    }  # fmt: skip
    assert tables.rows("post", '"hasThreadGate"', f"uri = '{root.uri}'") == [(True,)]
    assert tables.counts(root) == (0, 3, 0, 0)
    assert tables.profile_counts("bob") == (0, 0, 1)
    assert notes_of(tables, replies["bob"]) == []
    assert len(notes_of(tables, replies["carol"])) == 1


@pytest.mark.parametrize(
    ("allow", "passing"),
    [
        ([], set()),
        (None, {"bob", "carol", "dan"}),
        (["followerRule"], {"bob"}),
        (["followingRule"], {"carol"}),
        (["listRule"], {"dan"}),
        (["followerRule", "listRule"], {"bob", "dan"}),
        (["somethingNew"], set()),
    ],
)
def test_rules_of_thread_gates(
    tables: Tables, net: Network, allow: list[str] | None, passing: set[str]
) -> None:
    listed = net.put("alice", "app.bsky.graph.list", {"name": "l", "purpose": "p"})
    item = net.put(
        "alice", "app.bsky.graph.listitem", {"list": listed.uri, "subject": did_of("dan")}
    )
    root = net.post("alice")
    fields: dict[str, Any] = {}
    if allow is not None:
        fields["allow"] = [
            {"$type": f"{THREADGATE}#{rule}"} | ({"list": listed.uri} if "list" in rule else {})
            for rule in allow
        ]
    follows = [net.follow("bob", "alice"), net.follow("alice", "carol")]
    tables.apply_each([listed, item, *follows, root, gate(net, root, **fields)])
    tables.apply(*(net.reply(who, root) for who in ("bob", "carol", "dan")))
    allowed = tables.rows(
        "post", "creator", '"replyRoot" IS NOT NULL AND "violatesThreadGate" IS NULL'
    )
    assert {row[0] for row in allowed} == {did_of(who) for who in passing}
    assert tables.counts(root) == (0, len(passing), 0, 0)


def test_a_gate_does_not_judge_what_came_before_it(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    early = net.reply("bob", root)
    closing = gate(net, root, allow=[])
    late = net.reply("carol", root)
    tables.apply(root, early, closing, late)
    verdicts = dict(tables.rows("post", 'uri, "violatesThreadGate"'))
    assert verdicts == {root.uri: None, early.uri: None, late.uri: True}


def test_hidden_replies_stop_the_climb(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    hidden = net.reply("bob", root)
    reply = net.reply("carol", hidden, root)
    tables.apply_each([root, hidden, gate(net, root, hiddenReplies=[hidden.uri]), reply])
    assert [row[0] for row in notes_of(tables, reply)] == [did_of("bob")]


def test_a_post_gate_keeps_others_from_quoting(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    rule = {"$type": f"{POSTGATE}#disableRule"}
    bobs, own = net.quote("bob", post), net.quote("alice", post)
    tables.apply_each([post, gate(net, post, POSTGATE, embeddingRules=[rule]), bobs, own])
    verdicts = dict(tables.rows("post", 'uri, "violatesEmbeddingRules"'))
    assert verdicts == {post.uri: None, bobs.uri: True, own.uri: None}
    assert tables.notified() == []
    assert tables.counts(post) == (0, 0, 0, 2)
    assert tables.rows("post", '"hasPostGate"', f"uri = '{post.uri}'") == [(True,)]


@pytest.mark.parametrize("early", [True, False])
def test_gates_flag_their_post_in_any_order(tables: Tables, net: Network, early: bool) -> None:
    post = net.post("alice")
    closing = gate(net, post)
    tables.apply_each([closing, post] if early else [post, closing])
    assert tables.rows("post", '"hasThreadGate", "hasPostGate"') == [(True, None)]
    tables.apply(net.update(post, {"text": "edited"}))
    assert tables.rows("post", '"hasThreadGate"') == [(True,)]
    tables.apply(net.delete(closing))
    assert tables.rows("post", '"hasThreadGate"') == [(False,)]
    assert tables.rows("thread_gate") == []
