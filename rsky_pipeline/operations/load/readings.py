"""The records of a repo as the indexer reads them from a stream. No I/O.

The same functions read them, so that what is refused and what is written is the same; the JSON of
an event is left out, and nothing else.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import orjson

from rsky_pipeline.atproto.dagjson import record_to_json
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.configuration.selection import path_prefixes
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.values import Delete, collection_of
from rsky_pipeline.indexer.core.entries import Reading, read_direct, repo_reading
from rsky_pipeline.operations.load.cars import StoredRepo
from rsky_pipeline.streams.event import HISTORICAL_SEQ, MAX_PAYLOAD, RecordEvent


def record_readings(
    repo: StoredRepo,
    selection: tuple[str, ...],
    collections: Mapping[str, Collection],
    time: str,
    refused: Counter[str],
) -> Iterator[Reading]:
    """Yield a reading for each record that is wanted; what is refused is counted.

    Refused records are yielded too, since the indexer keeps a note of them.
    """
    did, rev, commit = repo.commit.did, repo.commit.rev, str(repo.repo.root)
    prefixes = path_prefixes(selection)
    for path, cid in repo.paths:
        if not path.startswith(prefixes):
            continue
        name, _, rkey = path.partition("/")
        if name not in collections:
            continue  # nobody indexes it
        block = repo.repo.blocks.get(cid)
        assert block is not None, "list_paths has seen it"
        try:
            json = record_to_json(block).decode()
        except InvalidDataError:
            refused["unreadable"] += 1
            continue
        if len(block) > MAX_PAYLOAD:
            refused["missing_field"] += 1
            continue
        record = orjson.loads(json)
        event = RecordEvent(
            "create", HISTORICAL_SEQ, time, did, commit, rev, name, rkey, str(cid), record, json
        )
        reading = read_direct(event, time, collections)
        if reading.refused is not None:
            refused[reading.refused.reason] += 1
        if reading.refused is None or reading.refused.uri:
            yield reading


def deletion_readings(
    repo: StoredRepo,
    stored: Mapping[str, str | None],
    collections: Mapping[str, Collection],
    time: str,
) -> Iterator[Reading]:
    """Yield the deletion of each stored row (uri to rev) that the repo does not hold.

    What is stored at a later rev than the file's is news, and stays.
    """
    did, rev = repo.commit.did, repo.commit.rev
    held = {f"at://{did}/{path}" for path, _ in repo.paths} if stored else set()
    for uri, known in stored.items():
        if uri not in held and (known is None or known < rev) and collection_of(uri) in collections:
            change = Delete(uri, did, rev)
            yield Reading("delete", did, time, collection_of(uri), historical=True, change=change)


def closing_reading(repo: StoredRepo, time: str) -> Reading:
    """Return the event that says that the repo is complete."""
    return repo_reading(repo.commit.did, str(repo.repo.root), repo.commit.rev, time)
