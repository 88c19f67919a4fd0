"""The changes of a repo as the indexer reads them from a stream, for commands that write rows.

The same functions read them, so that the same records are refused and the same rows are written;
only the JSON of an event is left out. No I/O.
"""

from collections.abc import Iterator, Mapping

import orjson

from rsky_pipeline.atproto.commit import Commit
from rsky_pipeline.atproto.dagjson import record_to_json
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.indexer.collections.declaration import Collection
from rsky_pipeline.indexer.collections.values import Delete
from rsky_pipeline.indexer.core.entries import Reading, read_direct, repo_reading
from rsky_pipeline.repos.repo import Repo, RepoPaths
from rsky_pipeline.streams.event import HISTORICAL_SEQ, MAX_PAYLOAD, RecordEvent


def record_readings(
    paths: RepoPaths, collections: Mapping[str, Collection], time: str
) -> Iterator[tuple[str, Reading | None, str | None]]:
    """Yield path, reading and reason of refusal of each record that is wanted.

    A refused record may have a reading too, since the indexer keeps a note of it.
    """
    repo = paths.repo
    did, rev, commit = repo.commit.did, repo.commit.rev, str(repo.root)
    for path, cid in paths:
        name, _, rkey = path.partition("/")
        if name not in collections:
            continue  # nobody indexes it
        block = repo.blocks.get(cid)
        assert block is not None, "list_paths has seen it"
        try:
            json = record_to_json(block).decode()
        except InvalidDataError:
            yield path, None, "unreadable"
            continue
        if len(block) > MAX_PAYLOAD:
            yield path, None, "missing_field"
            continue
        record = orjson.loads(json)
        event = RecordEvent(
            "create", HISTORICAL_SEQ, time, did, commit, rev, name, rkey, str(cid), record, json
        )
        reading = read_direct(event, time, collections)
        refused = reading.refused
        if refused is None:
            yield path, reading, None
        else:
            yield path, reading if refused.uri else None, refused.reason


def deletion_reading(commit: Commit, path: str, time: str) -> Reading:
    """Return the deletion of a record with a repo's rev."""
    change = Delete(f"at://{commit.did}/{path}", commit.did, commit.rev)
    collection = path.partition("/")[0]
    return Reading("delete", commit.did, time, collection, historical=True, change=change)


def closing_reading(repo: Repo, time: str) -> Reading:
    """Return the closing event of a repo, which sets its complete rev."""
    return repo_reading(repo.commit.did, str(repo.root), repo.commit.rev, time)
