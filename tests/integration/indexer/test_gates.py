"""Thread and post gates: who may reply and quote, in any order of arrival (golden cases)."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.indexer.golden import Note, expect
from tests.integration.indexer.kit import (
    Event,
    Network,
    Put,
    Tables,
    did_of,
    mention,
    time_of,
)

THREADGATE = "app.bsky.feed.threadgate"
POSTGATE = "app.bsky.feed.postgate"


REFUSED = {"invalidReplyRoot": False, "violatesThreadGate": True}


def gate(net: Network, post: Put, collection: str = THREADGATE, **fields: Any) -> Put:
    return net.put(post.who, collection, {"post": post.uri, **fields}, rkey=post.rkey)


def rules(*names: str, lists: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return what a gate allows; the rule of a list has the list's key behind a space."""
    found = []
    for name in names:
        kind, _, key = name.partition(" ")
        of = {"list": lists[key]} if lists and key else {}
        found.append({"$type": f"{THREADGATE}#{kind}", **of})
    return found


def test_a_thread_gate_lets_only_some_reply(tables: Tables, net: Network) -> None:
    """Who is refused is not counted and tells nobody, but has a post and a feed item."""
    root = net.post("alice", facets=mention("dan"))
    closing = gate(net, root, allow=rules("mentionRule", "followingRule"))
    follow = net.follow("alice", "carol")
    bob, carol, dan, own = (net.reply(who, root) for who in ("bob", "carol", "dan", "alice"))
    events = [root, closing, follow, bob, carol, dan, own]
    tables.apply(*events)
    expect(
        tables, events, changed={bob.uri: REFUSED, root.uri: {"hasThreadGate": True}},
        counts=[(root, (0, 3, 0, 0))],
        people={"alice": (0, 1, 2), "bob": (0, 0, 1), "carol": (1, 0, 1), "dan": (0, 0, 1)},
        told=[(root, "dan", "mention", None), (follow, "carol", "follow", None),
              (carol, "alice", "reply", root), (dan, "alice", "reply", root)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("allow", "refused"),
    [
        ([], {"alice", "bob", "dan", "eve"}),
        (None, set()),
        (["mentionRule"], {"alice", "bob", "eve"}),  # carol and dan are mentioned
        (["followingRule"], {"bob", "dan", "eve"}),  # carol follows alice only
        (["followerRule"], {"dan", "eve"}),  # alice and bob follow carol
        (["listRule 0", "listRule 1"], {"bob", "eve"}),  # lists of alice and of dan
        (["listRule post"], {"alice", "bob", "dan", "eve"}),
        (["mentionRule", "followerRule", "followingRule"], {"eve"}),
        (["somethingNew"], {"alice", "bob", "dan", "eve"}),
    ],
)
def test_rules_of_thread_gates(
    tables: Tables, net: Network, allow: list[str] | None, refused: set[str]
) -> None:
    pairs = ("carol>alice", "alice>carol", "bob>carol")
    follows = [net.follow(*pair.split(">")) for pair in pairs]
    lists = [net.put("carol", "app.bsky.graph.list", {"name": "l", "purpose": "p"})
             for _ in range(2)]  # fmt: skip
    items = [
        net.put("carol", "app.bsky.graph.listitem", {"list": made.uri, "subject": did_of(who)})
        for made, who in zip(lists, ("alice", "dan"), strict=True)
    ]
    root = net.post("carol", facets=mention("carol", "dan"))
    named = {"0": lists[0].uri, "1": lists[1].uri, "post": root.uri}
    fields: dict[str, Any] = {} if allow is None else {"allow": rules(*allow, lists=named)}
    closing = gate(net, root, **fields)
    replies = [net.reply(who, root) for who in ("alice", "bob", "dan", "eve", "carol")]
    events = [*follows, *lists, *items, root, closing, *replies]
    tables.apply_each(events)
    told: list[Note] = [
        *((put, pair.partition(">")[2], "follow", None)
          for put, pair in zip(follows, pairs, strict=True)),
        (root, "dan", "mention", None),
        *((put, "carol", "reply", root) for put in replies[:4] if put.who not in refused),
    ]  # fmt: skip
    expect(
        tables, events, told=told, counts=[(root, (0, 5 - len(refused), 0, 0))],
        people={"alice": (1, 1, 1), "bob": (0, 1, 1), "carol": (2, 1, 2), "dan": (0, 0, 1),
                "eve": (0, 0, 1)},
        changed={root.uri: {"hasThreadGate": True}}
        | {put.uri: REFUSED for put in replies if put.who in refused},
    )  # fmt: skip


def test_a_gate_does_not_judge_what_came_before_it(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    early = net.reply("bob", root)
    closing = gate(net, root, allow=[])
    late = net.reply("carol", root)
    tables.apply(root, early, closing, late)
    expect(
        tables, [root, early, closing, late], told=[(early, "alice", "reply", root)],
        people={"alice": (0, 0, 1), "bob": (0, 0, 1), "carol": (0, 0, 1)},
        counts=[(root, (0, 1, 0, 0))],
        changed={root.uri: {"hasThreadGate": True}, late.uri: REFUSED},
    )  # fmt: skip


def test_a_reply_to_a_refused_reply_is_judged_for_itself(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    closing = gate(net, root, allow=rules("followingRule"))
    follow = net.follow("alice", "carol")
    refused = net.reply("bob", root)
    below = net.reply("carol", refused, root)
    events = [root, closing, follow, refused, below]
    tables.apply_each(events)
    expect(
        tables, events, changed={root.uri: {"hasThreadGate": True}, refused.uri: REFUSED},
        people={"alice": (0, 1, 1), "bob": (0, 0, 1), "carol": (1, 0, 1)},
        counts=[(refused, (0, 1, 0, 0))],
        told=[(follow, "carol", "follow", None), (below, "bob", "reply", refused),
              (below, "alice", "reply", root)],
    )  # fmt: skip


def test_hidden_replies_stop_the_climb(tables: Tables, net: Network) -> None:
    root = net.post("alice")
    hidden = net.reply("bob", root)
    hiding = gate(net, root, hiddenReplies=[hidden.uri])
    reply = net.reply("carol", hidden, root)
    events = [root, hidden, hiding, reply]
    tables.apply_each(events)
    expect(
        tables, events, changed={root.uri: {"hasThreadGate": True}},
        people={"alice": (0, 0, 1), "bob": (0, 0, 1), "carol": (0, 0, 1)},
        counts=[(root, (0, 1, 0, 0)), (hidden, (0, 1, 0, 0))],
        told=[(hidden, "alice", "reply", root), (reply, "bob", "reply", hidden)],
    )  # fmt: skip


def test_a_post_gate_keeps_others_from_quoting(tables: Tables, net: Network) -> None:
    post = net.post("alice")
    rule = {"$type": f"{POSTGATE}#disableRule"}
    closing = gate(net, post, POSTGATE, embeddingRules=[rule], detachedEmbeddingUris=[])
    bobs, own = net.quote("bob", post), net.quote("alice", post)
    events = [post, closing, bobs, own]
    tables.apply_each(events)
    expect(
        tables, events, counts=[(post, (0, 0, 0, 2))],
        people={"alice": (0, 0, 2), "bob": (0, 0, 1)},
        changed={post.uri: {"hasPostGate": True}, bobs.uri: {"violatesEmbeddingRules": True}},
    )  # fmt: skip


def test_a_detached_quote_is_a_quote(tables: Tables, net: Network) -> None:
    """Only the AppView's views look at what a gate detaches."""
    post = net.post("alice")
    quote = net.quote("bob", post)
    detaching = gate(net, post, POSTGATE, detachedEmbeddingUris=[quote.uri])
    events = [post, quote, detaching]
    tables.apply_each(events)
    expect(
        tables, events, counts=[(post, (0, 0, 0, 1))], told=[(quote, "alice", "quote", post)],
        people={"alice": (0, 0, 1), "bob": (0, 0, 1)}, changed={post.uri: {"hasPostGate": True}},
    )  # fmt: skip


@pytest.mark.parametrize("early", [True, False])
def test_gates_flag_their_post_in_any_order(tables: Tables, net: Network, early: bool) -> None:
    post = net.post("alice")
    closing = gate(net, post)
    events: list[Event] = [closing, post] if early else [post, closing]
    tables.apply_each(events)
    seen = {did_of("alice"): {"indexedAt": time_of(closing.number if early else post.number)}}
    flags: dict[str, dict[str, Any]] = {post.uri: {"hasThreadGate": True}, **seen}
    expect(tables, events, people={"alice": (0, 0, 1)}, changed=flags)
    events.append(net.update(post, {"text": "edited"}))
    tables.apply(events[-1])
    expect(tables, events, people={"alice": (0, 0, 1)}, changed=flags)
    events.append(net.delete(closing))
    tables.apply(events[-1])
    flags[post.uri] = {"hasThreadGate": False}
    expect(tables, events, people={"alice": (0, 0, 1)}, changed=flags)


@pytest.mark.parametrize("collection", [THREADGATE, POSTGATE])
def test_a_gate_that_comes_and_goes_in_one_batch_leaves_its_post_open(
    tables: Tables, net: Network, collection: str
) -> None:
    post = net.post("alice")
    closing = gate(net, post, collection)
    events: list[Event] = [post, closing, net.delete(closing)]
    tables.apply(*events)
    flag = "hasThreadGate" if collection == THREADGATE else "hasPostGate"
    expect(tables, events, people={"alice": (0, 0, 1)}, changed={post.uri: {flag: False}})
