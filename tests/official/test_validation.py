"""The default rule for records: those that the AppView's read path accepts are there, and shown.

A PDS takes records that their lexicons forbid when it is asked not to validate. The official
indexer refuses them. For each kind it is compared what both indexers do, and whether an unmodified
AppView over our rows shows the record.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import leftovers, stores
from tests.official import rows
from tests.official.appview import AppView
from tests.official.installation import Installation
from tests.official.kinds import Facts
from tests.official.network import XrpcError, official_network
from tests.official.people import People, Person
from tests.official.pipeline import Following, following
from tests.official.test_official import nothing_unexplained
from tests.official.world import OFFICIAL_SCHEMA, Indexer

pytestmark = [pytest.mark.official, pytest.mark.timeout(1_200)]
PAGE = Path(__file__).parents[2] / "docs" / "appview-parity.md"
POST, LIKE, FOLLOW, LIST = (
    "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow", "app.bsky.graph.list"
)  # fmt: skip
WHEN = "2026-01-05T10:00:00.000Z"
Value = dict[str, Any]


def forbidden(post: Value, image: Value, text: Value, did: str) -> Iterator[tuple[str, Value]]:
    """Yield records that are forbidden, by kind; `post` is one that is there, `did` an account.

    `image` and `text` are blobs.
    """

    def posted(**changes: Any) -> Value:
        record = {"$type": POST, "text": "a post", "createdAt": WHEN, **changes}
        return {name: value for name, value in record.items() if value != ""}

    def liked(**changes: Any) -> Value:
        return {"$type": LIKE, "subject": post, "createdAt": WHEN, **changes}

    def imaged(blob: Value) -> Value:
        images = [{"image": blob, "alt": ""}]
        return posted(embed={"$type": "app.bsky.embed.images", "images": images})

    old = {"cid": image["ref"]["$link"], "mimeType": "image/png"}
    yield "datetime without a zone", posted(createdAt="2026-01-05T10:00:00")
    yield "datetime without a zone, of a like", liked(createdAt="2026-01-05T10:00:00.000")
    yield "date without a time", posted(createdAt="2026-01-05")
    yield "datetime with a space", posted(createdAt="2026-01-05 10:00:00Z")
    yield "datetime with a lower-case z", posted(createdAt="2026-01-05T10:00:00z")
    yield "datetime of no day", posted(createdAt="2026-02-31T10:00:00Z")
    yield "no datetime", posted(createdAt="yesterday")
    yield "without createdAt", posted(createdAt="")
    yield "text of 301 graphemes", posted(text="x" * 301)
    yield "text of more than 3,000 bytes", posted(text="\U0001f468\u200d\U0001f469" * 300)
    yield "text that is a number", posted(text=1)
    yield "without text", posted(text="")
    yield "language in upper case", posted(langs=["EN"])
    yield "language with a repeated variant", posted(langs=["sl-rozaj-rozaj"])
    yield "no language", posted(langs=["not a language"])
    yield "four languages", posted(langs=["en", "de", "fr", "it"])
    yield "nine tags", posted(tags=[f"tag{number}" for number in range(9)])
    yield "tag of 65 graphemes", posted(tags=["t" * 65])
    yield "facet with a negative index", posted(facets=[{
        "index": {"byteStart": -1, "byteEnd": 2},
        "features": [{"$type": "app.bsky.richtext.facet#tag", "tag": "a"}]}])  # fmt: skip
    yield "facet without an index", posted(facets=[{"features": []}])
    yield "embed without a type", posted(embed={"images": []})
    yield "embed of an unknown type", posted(embed={"$type": "app.example.embed", "a": 1})
    yield "link without a scheme", posted(embed={
        "$type": "app.bsky.embed.external",
        "external": {"uri": "example.org", "title": "", "description": ""}})  # fmt: skip
    yield "five images", posted(embed={
        "$type": "app.bsky.embed.images", "images": [{"image": image, "alt": ""}] * 5})  # fmt: skip
    yield "image that is a text", imaged(text)
    yield "image of 20 MB", imaged(image | {"size": 20_000_000})
    yield "image in the old form of blobs", imaged(old)
    yield "image without alt", posted(embed={
        "$type": "app.bsky.embed.images", "images": [{"image": image}]})  # fmt: skip
    yield "record key of any form in a reference", posted(reply={
        "root": post, "parent": post | {"uri": f"at://{did}/{POST}/a+b"}})  # fmt: skip
    yield "reference with a query", posted(reply={
        "root": post, "parent": post | {"uri": f"{post['uri']}?a=b"}})  # fmt: skip
    yield "reference without a CID", posted(reply={"root": post, "parent": {"uri": post["uri"]}})
    yield "reply without a root", posted(reply={"parent": post})
    yield "null for a missing value", posted(reply=None)
    yield "property of no lexicon", posted(extra={"a": [1, 2]})
    yield "like of a malformed CID", liked(subject=post | {"cid": "not-a-cid"})
    yield "like of a uri with a slash at its end", liked(subject=post | {"uri": f"{post['uri']}/"})
    yield "like of nothing", liked(subject=None)
    yield "follow of a handle", {"$type": FOLLOW, "subject": "person1.test", "createdAt": WHEN}
    yield "follow of no DID", {"$type": FOLLOW, "subject": "did:plc", "createdAt": WHEN}
    yield (
        "list without a name",
        {"$type": LIST, "name": "", "purpose": "app.bsky.graph.defs#curatelist", "createdAt": WHEN},
    )
    yield (
        "list of an unknown purpose",
        {"$type": LIST, "name": "a list", "purpose": "app.example#any", "createdAt": WHEN},
    )
    yield "list without a purpose", {"$type": LIST, "name": "a list", "createdAt": WHEN}


@dataclass
class Village:
    """Two accounts, the official indexer, and our pipeline with its default rule."""

    people: People
    author: Person
    indexer: Indexer
    live: Following
    uris: dict[str, str]  # of the forbidden records that the PDS took, by kind
    post: Value

    def facts(self) -> Facts:
        """Compare all rows."""
        facts = Facts(
            rows.read(self.indexer.database_url, OFFICIAL_SCHEMA),
            rows.read(self.live.url, self.live.schema), self.indexer.refused(), self.people.gone,
            self.people.edited, lenient=set(self.uris.values()),
        )  # fmt: skip
        for difference in rows.differences(facts.official, facts.ours):
            facts.explain(difference)
        return facts


@pytest.fixture(scope="module")
def village(installation: Installation, database_server: str) -> Iterator[Village]:
    """Everything, when all forbidden records are written."""
    with ExitStack() as stack:
        database = stack.enter_context(stores.fresh_database(database_server))
        folder = stack.enter_context(stores.scratch_directory())
        stack.enter_context(leftovers.ended_with_us(folder))
        network = stack.enter_context(official_network(installation, folder, database))
        indexer = Indexer.start(network, folder, None)
        live = stack.enter_context(following(
            network, folder / "live", ENUMERATE_REPOS="false", INITIAL_CURSOR="oldest",
        ))  # fmt: skip
        assert live.settings.validation == "lenient"
        live.command("db", "init", "--appview", installation.release)
        people = People(network, seed=1)
        author, other = people.join(network.pdses[0]), people.join(network.pdses[0])

        def create(person: Person, record: Value) -> Value:
            body = {"repo": person.did, "collection": record["$type"], "validate": False,
                    "record": record}  # fmt: skip
            found = people.call(person, "com.atproto.repo.createRecord", body)
            return {"uri": found["uri"], "cid": found["cid"]}

        def upload(media: str) -> Value:
            headers = {"authorization": f"Bearer {author.token}", "content-type": media}
            blob: Value = network.call(
                author.pds.url, "com.atproto.repo.uploadBlob", headers=headers,
                content=media.encode(),
            )["blob"]  # fmt: skip
            return blob

        post = create(other, {"$type": POST, "text": "a good post", "createdAt": WHEN})
        uris = {}
        for kind, record in forbidden(post, upload("image/png"), upload("text/plain"), other.did):
            try:
                uris[kind] = create(author, record)["uri"]
            except XrpcError as error:
                if error.status != 400:
                    raise
        indexer.wait(author.pds)
        live.wait()
        yield Village(people, author, indexer, live, uris, post)


def test_records_that_no_lexicon_allows(village: Village, figures: dict[str, Any]) -> None:
    facts = village.facts()
    nothing_unexplained(facts)
    official = {row["uri"] for row in facts.official["record"]}
    kinds = {
        (True, True): "both index", (True, False): "the official indexer alone indexes",
        (False, True): "lenient alone indexes", (False, False): "both refuse",
    }  # fmt: skip
    found: dict[str, list[str]] = {name: [] for name in kinds.values()}
    for kind, uri in village.uris.items():
        found[kinds[uri in official, uri in facts.records]].append(kind)
    figures["records that no lexicon allows"] = found
    assert not found["the official indexer alone indexes"]
    assert set(found["lenient alone indexes"]) == documented() & village.uris.keys()


def documented() -> set[str]:
    """Return the kinds of records that the documentation names as those that are added."""
    text = PAGE.read_text().partition("## Records that `validation = lenient` adds")[2]
    table = text.partition("\n## ")[0]
    return set(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)) - {"record", "---"}


def test_an_appview_shows_them(village: Village) -> None:
    facts = village.facts()
    network = village.people.network
    url = village.live.command("config", "url").strip()
    appview = AppView.start(network, url, village.live.schema)
    posts = sorted(uri for uri in village.uris.values() if f"/{POST}/" in uri)
    shown: set[str] = set()
    for uri in posts:
        answer = appview.ask("app.bsky.feed.getPosts", {"uris": uri})
        shown |= {each["uri"] for each in answer["posts"]}
    kinds = {uri: kind for kind, uri in village.uris.items()}
    indexed = facts.records & set(posts)
    assert sorted(kinds[uri] for uri in indexed - shown) == []
    # What is refused would not be shown if it had its rows.
    refused = sorted(set(posts) - indexed)
    for uri in refused:
        give_rows(village, uri)
    seen = {
        each["uri"] for uri in refused
        for each in appview.ask("app.bsky.feed.getPosts", {"uris": uri}).get("posts", ())
    }  # fmt: skip
    assert sorted(kinds[uri] for uri in seen) == []
    for method, query in (
        ("app.bsky.feed.getAuthorFeed", {"actor": village.author.did}),
        ("app.bsky.feed.getLikes", {"uri": village.post["uri"]}),
        ("app.bsky.feed.getPostThread", {"uri": village.post["uri"]}),
        ("app.bsky.graph.getFollows", {"actor": village.author.did}),
        ("app.bsky.graph.getLists", {"actor": village.author.did}),
        ("app.bsky.actor.getProfile", {"actor": village.author.did}),
    ):
        assert "status" not in appview.ask(method, query), method
    appview.end()


def give_rows(village: Village, uri: str) -> None:
    """Insert a post that was refused as if it had been indexed."""
    did, collection, rkey = uri.removeprefix("at://").split("/")
    found = village.people.network.call(
        village.author.pds.url, "com.atproto.repo.getRecord", get=True,
        repo=did, collection=collection, rkey=rkey,
    )  # fmt: skip
    schema, record = village.live.schema, found["value"]
    with psycopg.connect(village.live.url) as connection:
        connection.execute(
            f'INSERT INTO {schema}.record (uri, cid, did, json, "indexedAt") '
            "VALUES (%s, %s, %s, %s, %s)",
            [uri, found["cid"], did, json.dumps(record), WHEN],
        )
        connection.execute(
            f'INSERT INTO {schema}.post (uri, cid, creator, text, "createdAt", "indexedAt") '
            "VALUES (%s, %s, %s, %s, %s, %s)",
            [uri, found["cid"], did, str(record.get("text", "")), WHEN, WHEN],
        )
