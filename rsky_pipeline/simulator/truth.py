"""What the database must hold in the end, worked out from the simulated repos alone."""

from collections import Counter
from typing import Any

from rsky_pipeline.atproto.dagjson import to_json
from rsky_pipeline.simulator.world import BLOCK, FOLLOW, LIKE, POST, PROFILE, REPOST, World

INDEXED = (LIKE, POST, REPOST, FOLLOW, BLOCK, PROFILE)


def truth(world: World) -> dict[str, Any]:
    """Return the rows of each table, as the compared columns joined into lists.

    Of records with one natural key the smallest uri stands. Counts follow from what stands.
    """
    records: list[list[Any]] = []
    posts: list[list[Any]] = []
    keyed: dict[str, dict[tuple[str, str], str]] = {LIKE: {}, REPOST: {}, FOLLOW: {}, BLOCK: {}}
    for account in world.accounts:
        for path, (cid, _, record) in account.records.items():
            collection = path.partition("/")[0]
            uri = account.uri(path)
            if collection not in INDEXED:
                continue
            records.append([uri, str(cid), account.did, to_json(record).decode()])
            if collection == POST:
                text = record["text"].replace("\x00", "")
                posts.append([uri, str(cid), account.did, text])
            if collection in keyed:
                subject = record["subject"]
                key = (account.did, subject["uri"] if isinstance(subject, dict) else subject)
                standing = keyed[collection].get(key)
                keyed[collection][key] = min(uri, standing) if standing else uri
    rows = {
        "like": [[uri, *key] for key, uri in keyed[LIKE].items()],
        "repost": [[uri, *key] for key, uri in keyed[REPOST].items()],
        "follow": [[uri, *key] for key, uri in keyed[FOLLOW].items()],
        "actor_block": [[uri, *key] for key, uri in keyed[BLOCK].items()],
    }
    return {"record": records, "post": posts, **rows, **_counts(keyed, posts)}


def _counts(
    keyed: dict[str, dict[tuple[str, str], str]], posts: list[list[Any]]
) -> dict[str, list[list[Any]]]:
    def per(index: int, kind: str) -> list[list[Any]]:
        return [[key, count] for key, count in Counter(k[index] for k in keyed[kind]).items()]

    return {
        "likeCount": per(1, LIKE),
        "repostCount": per(1, REPOST),
        "followersCount": per(1, FOLLOW),
        "followsCount": per(0, FOLLOW),
        "postsCount": [[did, n] for did, n in Counter(post[2] for post in posts).items()],
    }
