"""The rules of others for a post: thread gates, post gates, and the thread of a reply.

A reply is judged once, when it is written, by the records that are there then, as officially. A
batch is cut where one of these changes after the reply (`looked_at`, `post_beyond`).
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson

from rsky_pipeline.atproto.datetimes import rev_time
from rsky_pipeline.database.connection import Transaction
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
_CLEAR_FLAGS = """
UPDATE post SET
    "hasThreadGate" = CASE WHEN "hasThreadGate" THEN false END,
    "hasPostGate" = CASE WHEN "hasPostGate" THEN false END
WHERE uri = ANY(%b::text[]) AND ("hasThreadGate" OR "hasPostGate")
"""
_FLAGS = """
SELECT n.uri, EXISTS (SELECT FROM thread_gate t WHERE t."postUri" = n.uri),
    EXISTS (SELECT FROM post_gate p WHERE p."postUri" = n.uri)
FROM unnest(%b::text[]) AS n(uri)
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

# Of a post whose row stands; NULL is False.
_STORED = """
SELECT uri, "invalidReplyRoot" IS TRUE, "violatesThreadGate" IS TRUE,
    "violatesEmbeddingRules" IS TRUE
FROM post WHERE uri = ANY(%b::text[])
"""
# A gate that is not there may have been deleted, and its tombstone be removed since.
_SEEN = """
SELECT n.uri, r."indexedAt", r.json, t.uri IS NOT NULL, f.rev
FROM unnest(%b::text[]) AS n(uri) LEFT JOIN record r ON r.uri = n.uri
LEFT JOIN rsky_pipeline.tombstone t ON t.uri = n.uri
LEFT JOIN rsky_pipeline.repo_floor f ON f.did = split_part(n.uri, '/', 3)
"""
_CAME = 'SELECT uri, "indexedAt" FROM post WHERE uri = ANY(%b::text[])'

MAX_DEPTH = 1_000  # replies above each other that are judged again at once
Json = Mapping[str, Any]


@dataclass(slots=True)
class PostRules:
    """The result of the rules for a post; `hidden` are replies that the thread's owner hides."""

    invalid_reply_root: bool = False
    violates_thread_gate: bool = False
    violates_embedding_rules: bool = False
    hidden: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[bool, bool, bool]:
        """The columns of the post, where NULL is False."""
        return self.invalid_reply_root, self.violates_thread_gate, self.violates_embedding_rules


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
    uris = sorted(put.uri for put in written)
    if changes.rebuilding:  # marks may be wrong
        changes.tx.execute(_CLEAR_FLAGS, (uris,))
    changes.tx.execute(_SET_FLAGS, (uris,))


def gate_flags(tx: Transaction, uris: Sequence[str]) -> dict[str, tuple[bool, bool]]:
    """Return for each post whether it has a thread gate and a post gate."""
    return {row[0]: (row[1], row[2]) for row in tx.query(_FLAGS, (list(uris),))}


def check_rules(changes: Changes, written: Sequence[Put]) -> dict[str, PostRules]:
    """Apply the rules to replies and quotes, and store each violation."""
    if changes.rebuilding:
        rules = standing_rules(changes.tx, written, {put.uri for put in changes.updated})
    else:
        rules = _judge(changes.tx, written)
    _store(changes, rules)
    _accept_waiting(changes, written, rules)
    return rules


def standing_rules(tx: Transaction, puts: Sequence[Put], stood: Set[str]) -> dict[str, PostRules]:
    """Return the results of the rules for posts that were written before, of every post.

    `stood` are posts whose row is there. Gates, follows and lists may have changed since the post
    was judged: the stored result counts then, unless the records that it depends on are as old as
    the post.
    """
    stored = {row[0]: row[1:] for row in tx.query(_STORED, (sorted(stood),))}
    parents = {put.rows.facts.parent for put in puts if put.rows.facts.parent is not None}
    came: dict[str, str] = dict(tx.query(_CAME, (sorted(parents),)))

    def is_invalid(put: Put, now: bool) -> bool:
        seen = came.get(put.rows.facts.parent, _ALWAYS)
        # A parent that came or was edited since may only make the reply valid.
        unknown = seen == _ALWAYS or (now and seen > put.indexed_at)
        return bool(stored[put.uri][0]) if unknown and put.uri in stored else now

    rules = {put.uri: PostRules() for put in puts} | _judge(tx, puts, is_invalid)
    doubtful = [
        put for put in puts if stored.get(put.uri, rules[put.uri].columns) != rules[put.uri].columns
    ]
    if not doubtful:
        return rules
    gates = gate_histories(tx, doubtful)
    for put in doubtful:
        facts, now = put.rows.facts, rules[put.uri]
        _, violates, embeds = stored[put.uri]
        if facts.root is not None and host(facts.root) != put.did:
            gate = gates.get(gate_uri(facts.root, THREAD_GATE), _NO_GATE)
            # Whom a gate admits also depends on follows and lists of that time.
            if not gate.was_the_same(put) or (gate.since and not gate.admits_nobody):
                now.violates_thread_gate = violates
        if facts.quoted is not None and host(facts.quoted) != put.did:
            gate = gates.get(gate_uri(facts.quoted, _EMBED_GATE), _NO_GATE)
            if not gate.was_the_same(put):
                now.violates_embedding_rules = embeds
    return rules


@dataclass(frozen=True, slots=True)
class GateHistory:
    """The present state of a gate; another one may have been there before `since` or `unknown`."""

    since: str = ""  # time of its present state; empty: it is not there
    unknown: str = ""  # time
    admits_nobody: bool = False

    def was_the_same(self, put: Put) -> bool:
        """Return whether the gate was in its present state when a post was judged."""
        return max(self.since, self.unknown) <= put.indexed_at


_NO_GATE = GateHistory()
_ALWAYS = "~"  # after every time


def gate_histories(tx: Transaction, puts: Sequence[Put]) -> dict[str, GateHistory]:
    """Return by their uris the gates for these posts; none that certainly never was there."""
    wanted = {gate_uri(put.rows.facts.root or "", THREAD_GATE) for put in puts}
    wanted |= {gate_uri(put.rows.facts.quoted or "", _EMBED_GATE) for put in puts}
    found: dict[str, GateHistory] = {}
    for uri, since, json, deleted, complete in tx.query(_SEEN, (sorted(wanted - {""}),)):
        if since is not None:
            found[uri] = GateHistory(since, admits_nobody=_loaded(json).get("allow") == [])
        elif deleted:
            found[uri] = GateHistory(unknown=_ALWAYS)
        elif complete is not None:
            found[uri] = GateHistory(unknown=rev_time(complete))
    return found


def _judge(
    tx: Transaction,
    written: Sequence[Put],
    is_invalid: Callable[[Put, bool], bool] = lambda _, now: now,
) -> dict[str, PostRules]:
    """Apply the rules to replies and quotes, by the records that are there now.

    `is_invalid` has the last word about the root of a reply.
    """
    replies = [put for put in written if put.rows.facts.parent is not None]
    quotes = [
        put
        for put in written
        if put.rows.facts.quoted is not None and host(put.rows.facts.quoted) != put.did
    ]
    rules = {put.uri: PostRules() for put in (*replies, *quotes)}
    if rules:
        gates = _gates(tx, replies, quotes)
        _check_roots(tx, replies, rules, is_invalid)
        _check_gates(tx, replies, gates, rules)
        for put in quotes:
            gate = gates.get(gate_uri(put.rows.facts.quoted, _EMBED_GATE), {})
            rules[put.uri].violates_embedding_rules = any(
                isinstance(rule, dict) and rule.get("$type") == _DISABLED
                for rule in _list(gate, "embeddingRules")
            )
    return rules


def gate_uri(post: str, collection: str) -> str:
    """Return the uri of a post's gate; an empty text where the post is no record."""
    reference = parts(post)
    if reference is None:
        return ""
    return f"at://{reference.authority}/{collection}/{reference.rkey}"


def _gates(tx: Transaction, replies: Sequence[Put], quotes: Sequence[Put]) -> dict[str, Json]:
    wanted = {gate_uri(put.rows.facts.root, THREAD_GATE) for put in replies}
    wanted |= {gate_uri(put.rows.facts.quoted, _EMBED_GATE) for put in quotes}
    return _records(tx, wanted - {""})


def _records(tx: Transaction, uris: set[str]) -> dict[str, Json]:
    if not uris:
        return {}
    found: dict[str, Json] = {}
    for uri, json in tx.query(_RECORDS, (sorted(uris),)):
        if value := _loaded(json):
            found[uri] = value
    return found


def _loaded(json: str) -> Json:
    """Return a record; another writer may have left one that cannot be read."""
    try:
        value = orjson.loads(json)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _check_roots(
    tx: Transaction,
    replies: Sequence[Put],
    rules: Mapping[str, PostRules],
    is_invalid: Callable[[Put, bool], bool],
) -> None:
    """A reply's root is invalid if its parent is missing, invalid, or in another thread."""
    if not replies:
        return
    uris = [put.uri for put in replies]
    parents = [put.rows.facts.parent for put in replies]
    facts = {row[0]: row[1:] for row in tx.query(_PARENTS, (uris, parents))}
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
            now = not indexed or bool(invalid) or wrong
            rules[reply.uri].invalid_reply_root = is_invalid(reply, now)


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
    tx: Transaction,
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
    roots = _records(tx, {put.rows.facts.root for put, _ in gated})
    follows = _follows(tx, gated)
    listed = _listed(tx, gated)
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


def _follows(tx: Transaction, gated: Sequence[tuple[Put, Json]]) -> Pairs:
    pairs: Pairs = set()
    for put, _ in gated:
        owner = host(put.rows.facts.root)
        pairs |= {(put.did, owner), (owner, put.did)}
    creators, subjects = zip(*sorted(pairs), strict=True)
    return {(row[0], row[1]) for row in tx.query(_FOLLOWS, (list(creators), list(subjects)))}


def _listed(tx: Transaction, gated: Sequence[tuple[Put, Json]]) -> Pairs:
    pairs = {
        (rule["list"], put.did)
        for put, gate in gated
        for rule in _list(gate, "allow")
        if isinstance(rule, dict) and isinstance(rule.get("list"), str) and "\0" not in rule["list"]
    }
    if not pairs:
        return set()
    lists, subjects = zip(*sorted(pairs), strict=True)
    return {(row[0], row[1]) for row in tx.query(_LISTED, (list(lists), list(subjects)))}


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
