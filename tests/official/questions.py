"""The same questions to two AppViews, and of which documented kind the differences of answers are.

An answer may differ where a row differs whose kind is documented: each part that differs has to be
about a record or an account of such a row.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.official.appview import AppView
from tests.official.kinds import LATER, Facts
from tests.official.people import People, Person

_FILTERS = (
    "posts_with_replies",
    "posts_no_replies",
    "posts_with_media",
    "posts_and_author_threads",
)
_OF_ACTOR = (
    "app.bsky.actor.getProfile", "app.bsky.graph.getFollowers", "app.bsky.graph.getFollows",
    "app.bsky.feed.getActorFeeds", "app.bsky.graph.getLists",
    "app.bsky.graph.getActorStarterPacks",
)  # fmt: skip
_OF_POST = ("app.bsky.feed.getLikes", "app.bsky.feed.getRepostedBy", "app.bsky.feed.getQuotes")
_OF_VIEWER = (
    "app.bsky.feed.getTimeline", "app.bsky.notification.listNotifications",
    "app.bsky.graph.getBlocks", "app.bsky.graph.getListBlocks",
)  # fmt: skip
# Samples that an AppView gives up after 100 ms.
_SAMPLED = frozenset({"knownFollowers", "knownLikers"})
_MOST_PAGES = 40
_PAGE = 10
_TOKEN_SECONDS = 40


@dataclass(frozen=True, slots=True)
class Question:
    """A question, of a viewer or of nobody."""

    method: str
    query: Mapping[str, Any]
    viewer: Person | None = None
    paged: bool = False

    @property
    def name(self) -> str:
        """What it counts as."""
        return self.method + (" (viewer)" if self.viewer else "")


@dataclass(slots=True)
class Answers:
    """How the answers of two AppViews compare."""

    asked: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # equal ones
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # name -> kind -> answers
    unexplained: list[str] = field(default_factory=list)


def questions(people: People, facts: Facts, seed: int) -> Iterator[Question]:
    """Yield about two thousand questions about everything that is there."""
    choose = random.Random(seed)
    posts = sorted(row["uri"] for row in facts.official["post"])
    chosen = choose.sample(posts, min(110, len(posts)))
    dids = [person.did for person in people.everybody]
    for did in dids:
        for method in _OF_ACTOR:
            yield Question(method, {"actor": did})
        for each in _FILTERS:
            yield Question(
                "app.bsky.feed.getAuthorFeed", {"actor": did, "filter": each}, paged=True
            )
    for uri in chosen:
        yield Question("app.bsky.feed.getPostThread", {"uri": uri, "depth": 10})
        yield Question("app.bsky.unspecced.getPostThreadV2", {"anchor": uri})
        for method in _OF_POST:
            yield Question(method, {"uri": uri}, paged=True)
    for start in range(0, len(posts), 25):
        yield Question("app.bsky.feed.getPosts", {"uris": posts[start : start + 25]})
    for row in facts.official["list"]:
        yield Question("app.bsky.graph.getList", {"list": row["uri"]}, paged=True)
        yield Question("app.bsky.feed.getListFeed", {"list": row["uri"]}, paged=True)
    for row in facts.official["starter_pack"]:
        yield Question("app.bsky.graph.getStarterPack", {"starterPack": row["uri"]})
    for row in facts.official["feed_generator"]:
        yield Question("app.bsky.feed.getFeedGenerator", {"feed": row["uri"]})
    yield Question("app.bsky.labeler.getServices", {"dids": dids, "detailed": "true"})
    for word in ("person1", "renamed", "second"):
        yield Question("app.bsky.actor.searchActors", {"q": word, "limit": 50})
    for word in ("coffee", "bom", "novo"):
        yield Question("app.bsky.feed.searchPosts", {"q": word, "limit": 50})
    for viewer in choose.sample(people.active(), 8):
        for method in _OF_VIEWER:
            yield Question(method, {}, viewer, paged=True)
        yield Question("app.bsky.notification.getUnreadCount", {}, viewer)
        yield Question("app.bsky.feed.getActorLikes", {"actor": viewer.did}, viewer, paged=True)
        yield Question("app.bsky.graph.getRelationships",
                       {"actor": viewer.did, "others": dids[:30]}, viewer)  # fmt: skip
        for did in choose.sample(dids, min(28, len(dids))):
            yield Question("app.bsky.actor.getProfile", {"actor": did}, viewer)
            yield Question("app.bsky.feed.getAuthorFeed", {"actor": did}, viewer)
        for uri in choose.sample(chosen, min(28, len(chosen))):
            yield Question("app.bsky.feed.getPostThread", {"uri": uri}, viewer)


def compare_answers(
    people: People, facts: Facts, official: AppView, ours: AppView, seed: int
) -> Answers:
    """Ask both everything."""
    found, tokens = Answers(), Tokens(people, official.did)
    rows, news = touched(facts), touched(facts, news=True)
    for question in questions(people, facts, seed):
        found.asked[question.name] += 1
        left, right = (_answer(tokens, each, question) for each in (official, ours))
        if left == right:
            found.errors[question.name] += isinstance(left, dict) and "error" in left
            continue
        about = news if question.method.startswith("app.bsky.notification.") else rows
        subject = str(next(iter(question.query.values()), ""))
        if question.viewer is not None and not question.query:
            subject = question.viewer.did
        if "error" in left or "error" in right:
            kinds = {about.get(subject)}  # an error, here or there
        elif question.method == "app.bsky.actor.searchActors":
            kinds = {LATER if sorted(_handles(left)) == sorted(_handles(right)) else None}
        else:
            kinds = set(_kinds(left, right, subject, about))
        counts = found.kinds.setdefault(question.name, Counter())
        if None in kinds:
            shown = f"{question.name} {dict(question.query)}: {_first_difference(left, right)}"
            found.unexplained.append(shown)
        for kind in kinds - {None}:
            counts[str(kind)] += 1
    return found


_ABOUT = ("uri", "postUri", "recordUri", "reasonSubject", "subject", "subjectUri", "did")
_RELATIONS = frozenset({"follow", "actor_block", "list_item", "verification"})


def touched(facts: Facts, *, news: bool = False) -> dict[str, str]:
    """Return the records and accounts of all rows that differ in what is shown, with the kind.

    `news` is whether notifications are shown.
    """
    found: dict[str, str] = {}
    for table, kind, row in facts.explained:
        if table == "notification" and not news:
            continue
        names = (*_ABOUT, "creator", "subjectDid") if table in _RELATIONS else _ABOUT
        for value in map(row.get, names if kind != LATER else ()):
            if value is not None:
                found.setdefault(value, kind)
    return found


def _handles(answer: Any) -> list[str]:
    return [actor["handle"] for actor in answer["actors"]]


@dataclass(slots=True)
class Tokens:
    """Tokens of viewers for methods of the AppView; they are good for a minute."""

    people: People
    audience: str
    _known: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)

    def token(self, viewer: Person, method: str) -> str:
        """Return a token with which a viewer may ask."""
        made, token = self._known.get((viewer.did, method), (0.0, ""))
        if not token or time.monotonic() - made > _TOKEN_SECONDS:
            made, token = time.monotonic(), self.people.call(
                viewer, "com.atproto.server.getServiceAuth", get=True,
                aud=self.audience, lxm=method,
            )["token"]  # fmt: skip
            self._known[viewer.did, method] = made, token
        return token


def _answer(tokens: Tokens, appview: AppView, question: Question) -> Any:
    token = None
    if question.viewer is not None:
        token = tokens.token(question.viewer, question.method)
    if not question.paged:
        return _masked(appview.ask(question.method, dict(question.query), token))
    pages, cursor = [], ""
    for _ in range(_MOST_PAGES):
        query = {**question.query, "limit": _PAGE, **({"cursor": cursor} if cursor else {})}
        page = appview.ask(question.method, query, token)
        cursor = page.pop("cursor", "")
        pages.append(_masked(page))
        if not cursor:
            break
    return _joined(pages)


def _joined(pages: list[Any]) -> Any:
    """Return one long page: where an item is missing, all later pages begin elsewhere."""
    first = dict(pages[0])
    for page in pages[1:]:
        for name, value in page.items():
            if isinstance(value, list):
                first[name] = [*first.get(name, []), *value]
    return first


def _masked(value: Any, name: str = "") -> Any:
    """Return a part of an answer without samples, and in an order where it has none."""
    if isinstance(value, dict):
        return {key: _masked(each, key) for key, each in value.items() if key not in _SAMPLED}
    if isinstance(value, list):
        parts = [_masked(each) for each in value]
        return sorted(parts, key=_text) if name == "labels" else parts
    return value


def _kinds(left: Any, right: Any, about: str, kinds: Mapping[str, str]) -> Iterator[str | None]:
    """Yield the kind of each part that differs, None for one that nothing explains."""
    if left == right:
        return
    if isinstance(left, dict) and isinstance(right, dict):
        subject = str(left.get("uri") or left.get("did") or about)
        for name in left.keys() | right.keys():
            yield from _kinds(left.get(name), right.get(name), subject, kinds)
    elif isinstance(left, list) and isinstance(right, list):
        first, second = (Counter(map(_text, each)) for each in (left, right))
        missing, extra = list((first - second).elements()), list((second - first).elements())
        if not missing and not extra:
            yield _named(_text(left), kinds) or kinds.get(about)  # another order
        keys = {_key(json.loads(text)): text for text in extra}
        for text in missing:
            item = json.loads(text)
            other = keys.pop(_key(item), None)
            if other is None:
                yield _named(text, kinds) or kinds.get(about)
            else:
                yield from _kinds(item, json.loads(other), about, kinds)
        for text in keys.values():
            yield _named(text, kinds) or kinds.get(about)
    else:
        yield kinds.get(about) or _named(json.dumps([left, right]), kinds)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _key(item: Any) -> str:
    """Return what an item of a list is about."""
    if not isinstance(item, dict):
        return _text(item)
    place = item.get("post") or item.get("subject") or item.get("actor") or item
    place = place if isinstance(place, dict) else {"uri": place}
    reason = item.get("reason")
    by = reason.get("by", {}).get("did") if isinstance(reason, dict) else reason
    return _text([place.get("uri") or place.get("did"), by])


def _named(text: str, kinds: Mapping[str, str]) -> str | None:
    """Return the kind of a part of an answer by what it names."""
    return next((kind for subject, kind in kinds.items() if f'"{subject}"' in text), None)


def _first_difference(left: Any, right: Any, path: str = "") -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted(left.keys() | right.keys()):
            if left.get(name) != right.get(name):
                return _first_difference(left.get(name), right.get(name), f"{path}.{name}")
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (first, second) in enumerate(zip(left, right, strict=True)):
            if first != second:
                return _first_difference(first, second, f"{path}[{index}]")
    return f"{path}: {_text(left)[:300]} officially, {_text(right)[:300]} ours"
