"""The rules of others for a post: thread gates, post gates, and the thread of a reply.

A reply is judged once, when it is written, by the records that are there then, as officially. A
batch is cut where one of these changes after the reply (`looked_at`, `post_beyond`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rsky_pipeline.indexer.collections.declaration import Changes
from rsky_pipeline.indexer.collections.fields import host, parts
from rsky_pipeline.indexer.collections.values import Put

THREAD_GATE = "app.bsky.feed.threadgate"
_EMBED_GATE = "app.bsky.feed.postgate"
_DISABLED = f"{_EMBED_GATE}#disableRule"

_SET_FLAGS = """
UPDATE post SET
    "hasThreadGate" = CASE WHEN t.uri IS NOT NULL THEN true ELSE post."hasThreadGate" END,
    "hasPostGate" = CASE WHEN p.uri IS NOT NULL THEN true ELSE post."hasPostGate" END
FROM unnest(%b::text[]) AS n(uri)
LEFT JOIN thread_gate t ON t."postUri" = n.uri
LEFT JOIN post_gate p ON p."postUri" = n.uri
WHERE post.uri = n.uri AND (t.uri IS NOT NULL OR p.uri IS NOT NULL)
"""
_PARENTS = """
SELECT n.uri, r.uri IS NOT NULL, p."invalidReplyRoot", p."replyRoot"
FROM unnest(%b::text[], %b::text[]) AS n(uri, parent)
LEFT JOIN record r ON r.uri = n.parent LEFT JOIN post p ON p.uri = n.parent
"""
_RECORDS = "SELECT uri, json FROM record WHERE uri = ANY(%b::text[])"
_FOLLOWS = """
SELECT f.creator, f."subjectDid" FROM unnest(%b::text[], %b::text[]) AS n(creator, subject)
JOIN follow f ON f.creator = n.creator AND f."subjectDid" = n.subject
"""
_LISTED = """
SELECT i."listUri", i."subjectDid" FROM unnest(%b::text[], %b::text[]) AS n(list, subject)
JOIN list_item i ON i."listUri" = n.list AND i."subjectDid" = n.subject
"""
_WAITING = """
SELECT r.uri, r."replyParent", p."replyRoot", r."replyRoot"
FROM unnest(%b::text[]) AS n(parent) JOIN post r ON r."replyParent" = n.parent
JOIN post p ON p.uri = n.parent WHERE r."invalidReplyRoot"
"""
_ACCEPT = """
UPDATE post SET "invalidReplyRoot" = CASE WHEN "violatesThreadGate" THEN false END,
    "violatesThreadGate" = CASE WHEN "violatesThreadGate" THEN true END
WHERE uri = ANY(%b::text[])
"""
_WRITE = """
UPDATE post SET "invalidReplyRoot" = n.invalid, "violatesThreadGate" = n.gate,
    "violatesEmbeddingRules" = n.embedding
FROM unnest(%b::text[], %b::boolean[], %b::boolean[], %b::boolean[])
    AS n(uri, invalid, gate, embedding)
WHERE post.uri = n.uri
"""

MAX_DEPTH = 1_000  # replies above each other that are judged again at once
Json = Mapping[str, Any]


@dataclass(slots=True)
class PostRules:
    """The result of the rules for a post; `hidden` are replies that the thread's owner hides."""

    invalid_reply_root: bool = False
    violates_thread_gate: bool = False
    violates_embedding_rules: bool = False
    hidden: frozenset[str] = frozenset()


def looked_at(root: str | None, parent: str | None, quoted: str | None) -> tuple[str, ...]:
    """Return the records that the rules look at for a reply or a quote."""
    found = [uri for uri in (root, parent, quoted) if uri is not None]
    if root is not None:
        found.append(gate_uri(root, THREAD_GATE))
    if quoted is not None:
        found.append(gate_uri(quoted, _EMBED_GATE))
    return tuple(found)


def set_gate_flags(changes: Changes, written: Sequence[Put]) -> None:
    """Mark posts whose gates were here before them (officially such gates are ignored)."""
    changes.tx.execute(_SET_FLAGS, (sorted(put.uri for put in written),))


def check_rules(changes: Changes, written: Sequence[Put]) -> dict[str, PostRules]:
    """Apply the rules to replies and quotes, and store each violation."""
    replies = [put for put in written if put.rows.facts.parent is not None]
    quotes = [
        put
        for put in written
        if put.rows.facts.quoted is not None and host(put.rows.facts.quoted) != put.did
    ]
    rules = {put.uri: PostRules() for put in (*replies, *quotes)}
    if rules:
        gates = _gates(changes, replies, quotes)
        _check_roots(changes, replies, rules)
        _check_gates(changes, replies, gates, rules)
        for put in quotes:
            gate = gates.get(gate_uri(put.rows.facts.quoted, _EMBED_GATE), {})
            rules[put.uri].violates_embedding_rules = any(
                isinstance(rule, dict) and rule.get("$type") == _DISABLED
                for rule in _list(gate, "embeddingRules")
            )
    _store(changes, rules)
    _accept_waiting(changes, written, rules)
    return rules


def gate_uri(post: str, collection: str) -> str:
    """Return the uri of a post's gate; an empty text where the post is no record."""
    reference = parts(post)
    if reference is None:
        return ""
    return f"at://{reference.authority}/{collection}/{reference.rkey}"


def _gates(changes: Changes, replies: Sequence[Put], quotes: Sequence[Put]) -> dict[str, Json]:
    wanted = {gate_uri(put.rows.facts.root, THREAD_GATE) for put in replies}
    wanted |= {gate_uri(put.rows.facts.quoted, _EMBED_GATE) for put in quotes}
    return _records(changes, wanted - {""})


def _records(changes: Changes, uris: set[str]) -> dict[str, Json]:
    if not uris:
        return {}
    found: dict[str, Json] = {}
    for uri, json in changes.tx.query(_RECORDS, (sorted(uris),)):
        value = orjson.loads(json)
        if isinstance(value, dict):
            found[uri] = value
    return found


def _check_roots(changes: Changes, replies: Sequence[Put], rules: Mapping[str, PostRules]) -> None:
    """A reply's root is invalid if its parent is missing, invalid, or in another thread."""
    if not replies:
        return
    uris = [put.uri for put in replies]
    parents = [put.rows.facts.parent for put in replies]
    facts = {row[0]: row[1:] for row in changes.tx.query(_PARENTS, (uris, parents))}
    by_uri = {put.uri: put for put in replies}
    judged: set[str] = set()
    for put in replies:
        # A batch holds parents and replies in any order: judge the parents first.
        path: list[Put] = []
        above: Put | None = put
        while above is not None and above.uri not in judged:
            judged.add(above.uri)
            path.append(above)
            above = by_uri.get(above.rows.facts.parent)
        for reply in reversed(path):
            indexed, invalid, parent_root = facts[reply.uri]
            parent = reply.rows.facts.parent
            if parent in by_uri:
                invalid = rules[parent].invalid_reply_root
            wrong = _is_elsewhere(parent, parent_root, reply.rows.facts.root)
            rules[reply.uri].invalid_reply_root = not indexed or bool(invalid) or wrong


def _is_elsewhere(parent: str, parent_root: str | None, root: str) -> bool:
    """Return whether a parent is in another thread than the reply to it claims."""
    return parent_root is not None if parent == root else parent_root != root


def _accept_waiting(
    changes: Changes, written: Sequence[Put], rules: Mapping[str, PostRules]
) -> None:
    """Judge replies again that came before their parents (officially they stay invalid)."""
    arrived = [put.uri for put in written if not rules.get(put.uri, PostRules()).invalid_reply_root]
    for _ in range(MAX_DEPTH):
        if not arrived:
            return
        rows = changes.tx.query(_WAITING, (arrived,))
        arrived = [
            uri
            for uri, parent, parent_root, root in rows
            if not _is_elsewhere(parent, parent_root, root)
        ]
        if arrived:
            changes.tx.execute(_ACCEPT, (sorted(arrived),))


def _check_gates(
    changes: Changes,
    replies: Sequence[Put],
    gates: Mapping[str, Json],
    rules: Mapping[str, PostRules],
) -> None:
    gated: list[tuple[Put, Json]] = []
    for put in replies:
        gate = gates.get(gate_uri(put.rows.facts.root, THREAD_GATE))
        if gate is None:
            continue
        hidden = (item for item in _list(gate, "hiddenReplies") if isinstance(item, str))
        rules[put.uri].hidden = frozenset(hidden)
        if isinstance(gate.get("allow"), list) and host(put.rows.facts.root) != put.did:
            gated.append((put, gate))
    if not gated:
        return
    roots = _records(changes, {put.rows.facts.root for put, _ in gated})
    follows = _follows(changes, gated)
    listed = _listed(changes, gated)
    for put, gate in gated:
        allowed = _is_allowed(put, gate, roots.get(put.rows.facts.root), follows, listed)
        rules[put.uri].violates_thread_gate = not allowed


Pairs = set[tuple[str, str]]


def _is_allowed(put: Put, gate: Json, root: Json | None, follows: Pairs, listed: Pairs) -> bool:
    owner = host(put.rows.facts.root)
    for rule in _list(gate, "allow"):
        kind = rule.get("$type") if isinstance(rule, dict) else None
        if (
            (kind == f"{THREAD_GATE}#mentionRule" and put.did in _mentioned(root))
            or (kind == f"{THREAD_GATE}#followerRule" and (put.did, owner) in follows)
            or (kind == f"{THREAD_GATE}#followingRule" and (owner, put.did) in follows)
            or (kind == f"{THREAD_GATE}#listRule" and (rule.get("list"), put.did) in listed)
        ):
            return True
    return False


def _mentioned(root: Json | None) -> set[str]:
    found: set[str] = set()
    for facet in _list(root or {}, "facets"):
        for feature in _list(facet if isinstance(facet, dict) else {}, "features"):
            if isinstance(feature, dict) and str(feature.get("$type")).endswith("#mention"):
                found.add(str(feature.get("did")))
    return found


def _follows(changes: Changes, gated: Sequence[tuple[Put, Json]]) -> Pairs:
    pairs: Pairs = set()
    for put, _ in gated:
        owner = host(put.rows.facts.root)
        pairs |= {(put.did, owner), (owner, put.did)}
    creators, subjects = zip(*sorted(pairs), strict=True)
    return {
        (row[0], row[1]) for row in changes.tx.query(_FOLLOWS, (list(creators), list(subjects)))
    }


def _listed(changes: Changes, gated: Sequence[tuple[Put, Json]]) -> Pairs:
    pairs = {
        (rule["list"], put.did)
        for put, gate in gated
        for rule in _list(gate, "allow")
        if isinstance(rule, dict) and isinstance(rule.get("list"), str) and "\0" not in rule["list"]
    }
    if not pairs:
        return set()
    lists, subjects = zip(*sorted(pairs), strict=True)
    return {(row[0], row[1]) for row in changes.tx.query(_LISTED, (list(lists), list(subjects)))}


def _list(value: Json, key: str) -> Sequence[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else ()


def _store(changes: Changes, rules: Mapping[str, PostRules]) -> None:
    """Write results; a column pair stays NULL where nothing is wrong, as officially."""
    edited = {put.uri for put in changes.updated}
    rows: list[tuple[str, bool | None, bool | None, bool | None]] = []
    for uri in sorted({*rules, *edited}):
        rule = rules.get(uri, PostRules())
        wrong = rule.invalid_reply_root or rule.violates_thread_gate
        if wrong or rule.violates_embedding_rules or uri in edited:
            reply = (rule.invalid_reply_root, rule.violates_thread_gate)
            rows.append((uri, *(reply if wrong else (None, None)),
                         rule.violates_embedding_rules or None))  # fmt: skip
    if rows:
        changes.tx.execute(_WRITE, [list(column) for column in zip(*rows, strict=True)])
