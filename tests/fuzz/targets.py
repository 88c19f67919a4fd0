"""Every pure entry point that bytes of strangers come to, and the properties of each.

A target takes bytes. It may refuse them by the exception that its parser declares; any exception
that leaves `Target.run` is a fault, and so is a result that is another one without the compiled
readers, that its consumers do not take, or that is not the same once it is written and read again.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import orjson

from rsky_pipeline.atproto import car, cbor, dagjson, datetimes, syntax
from rsky_pipeline.atproto.cid import Cid
from rsky_pipeline.atproto.commit import Commit, parse_commit, unsigned_bytes
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import (
    AccountMessage,
    CommitMessage,
    ErrorMessage,
    IdentityMessage,
    InfoMessage,
    LabelsMessage,
    Message,
    SyncMessage,
    decode_frame,
    encode_frame,
)
from rsky_pipeline.atproto.identity import parse_did_document
from rsky_pipeline.atproto.labels import parse_label
from rsky_pipeline.atproto.mst import walk
from rsky_pipeline.atproto.mst.node import parse_block, write_block
from rsky_pipeline.configuration.endpoints import Endpoint, normal_host, parse_endpoint
from rsky_pipeline.configuration.settings import Verify
from rsky_pipeline.indexer.collections import registry
from rsky_pipeline.indexer.core.entries import read_entry
from rsky_pipeline.indexer.core.labels import read_labels
from rsky_pipeline.indexer.lexicon import check
from rsky_pipeline.indexer.seen import read_seen
from rsky_pipeline.ingester.frames import FrameConverter, FrameCounters, RawDeadLetters
from rsky_pipeline.ingester.labels import LabelConverter
from rsky_pipeline.network.connect import is_public_name
from rsky_pipeline.network.directory import Directory, IdentityNotFoundError
from rsky_pipeline.network.grpc import GrpcError, message_of
from rsky_pipeline.network.handles import did_of_records
from rsky_pipeline.network.http import (
    LONGEST_SECONDS,
    HttpClient,
    HttpError,
    read_rate_limit,
    read_retry_after,
    redirect_target,
)
from rsky_pipeline.network.listing import read_page
from rsky_pipeline.network.pool import InvalidUrlError, parse_url
from rsky_pipeline.repos.hosts import host_key
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import (
    EVENT_FIELD,
    LABELS_FIELD,
    MalformedEventError,
    RecordEvent,
    decode_event,
    encode_event,
    encode_record_event,
)
from rsky_pipeline.streams.repo_job import RepoJob, decode_repo_job, encode_repo_job
from tests.fuzz import seeds
from tests.unit.ingester.support import Converting
from tests.unit.ingester.test_commits import commit
from tests.unit.readers import python_alone

NOW, SECONDS = "2026-07-04T14:38:08.999Z", 1_783_175_888.0
KEY = PrivateKey.from_seed("k256", b"nobody").public
MODES: tuple[Verify, ...] = ("none", "signature", "full")
Form = Literal["bytes", "text", "json", "cbor", "frame"]


class Target(NamedTuple):
    """An entry point; `form` is that of the bytes, for mutation of the values in them."""

    name: str
    form: Form
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


class _Strict(Boundary):
    """Hides nothing."""

    def caught(self, error: Exception, kind: str, **subject: str) -> None:
        raise error


def outcome(read: Callable[[Any], Any], given: Any, *declared: type[Exception]) -> Any:
    """Return the result of a parser, or the declared exception's reason; both forms must agree."""
    with python_alone():
        expected = _outcome(read, given, declared)
    found = _outcome(read, given, declared)
    assert found == expected, f"compiled {found!r}, Python {expected!r}"
    return found


def _outcome(read: Callable[[Any], Any], given: Any, declared: tuple[type[Exception], ...]) -> Any:
    try:
        return read(given)
    except declared as error:
        return _Refused(str(getattr(error, "reason", type(error).__name__)))


class _Refused(NamedTuple):
    reason: str


def refused(found: object) -> bool:
    """Return whether an outcome is no result."""
    return type(found) is _Refused


def frame(raw: bytes) -> None:
    """A message is the same once it is encoded and decoded again."""
    message = outcome(decode_frame, raw, InvalidDataError)
    again = None if refused(message) else _encoded(message)
    assert again is None or decode_frame(again) == message


def _encoded(message: Message) -> bytes | None:
    body: dict[str, Any]
    match message:
        case CommitMessage():
            body = {
                "seq": message.seq, "repo": message.did, "rev": message.rev,
                "since": message.since, "commit": message.commit, "blocks": message.blocks,
                "ops": [op._asdict() for op in message.ops], "prevData": message.prev_data,
                "time": message.time, "tooBig": message.too_big, "rebase": message.rebase,
            }  # fmt: skip
            return encode_frame("#commit", body)
        case SyncMessage(seq, did, rev, time, blocks):
            body = {"seq": seq, "did": did, "rev": rev, "time": time, "blocks": blocks}
            return encode_frame("#sync", body)
        case IdentityMessage(seq, did, time, handle):
            body = {"seq": seq, "did": did, "time": time, "handle": handle}
            return encode_frame("#identity", body)
        case AccountMessage(seq, did, time, active, status):
            body = {"seq": seq, "did": did, "time": time, "active": active, "status": status}
            return encode_frame("#account", body)
        case LabelsMessage(seq, labels):
            return encode_frame("#labels", {"seq": seq, "labels": list(labels)})
        case InfoMessage(name, text):
            return encode_frame("#info", {"name": name, "message": text})
        case ErrorMessage(error, text):
            return cbor.encode({"op": -1}) + cbor.encode({"error": error, "message": text})
    return None


def relay_frame(raw: bytes) -> None:
    """Converting and admitting a frame raises nothing, and the indexer reads what is written."""
    for mode in MODES:
        entries = _converted(mode, raw)
        with python_alone():
            assert _converted(mode, raw) == entries
        _check_entries(entries)


def _converted(mode: Verify, raw: bytes) -> list[Entry]:
    made = Converting(mode)
    made.converter.boundary = _Strict()
    return made.convert(raw).entries


def labeler_frame(raw: bytes) -> None:
    """The same for a labeler."""
    made: FrameConverter = LabelConverter("labeler.test", FrameCounters(), RawDeadLetters("raw"))
    made.boundary = _Strict()
    _check_entries(made.convert(raw).entries)


def _check_entries(entries: Iterable[Entry]) -> None:
    for entry in entries:
        match entry.field:
            case b"event":
                event(entry.payload)
            case b"labels":
                labels(entry.payload)
            case b"repo":
                job = decode_repo_job(entry.payload)
                assert decode_repo_job(encode_repo_job(job)) == job


def label(block: bytes) -> None:
    """A label's signed bytes are those of the fields that came."""
    value = outcome(cbor.decode, block, InvalidDataError)
    found = value if refused(value) else outcome(parse_label, value, InvalidDataError)
    if not refused(found):
        assert parse_label(cbor.decode(found.signed)) == replace(found, sig=None)
        assert not found.verify(KEY)


def did_document(data: bytes) -> None:
    """Hosts that a document names have a key for limits, and an address or none."""
    document = _json(data)
    did = document.get("id") if type(document) is dict else None
    if type(did) is not str:
        return
    found = outcome(lambda it: parse_did_document(it, did), document, InvalidDataError)
    if refused(found):
        return
    services = (("atproto_pds", "AtprotoPersonalDataServer", found.pds),
                ("atproto_labeler", "AtprotoLabeler", found.labeler))  # fmt: skip
    again = parse_did_document(
        {
            "id": did,
            "alsoKnownAs": [f"at://{found.handle}"],
            "verificationMethod": document.get("verificationMethod"),
            "service": [
                {"id": f"#{name}", "type": kind, "serviceEndpoint": url}
                for name, kind, url in services
            ],
        },
        did,
    )
    assert again == found
    for url in (found.pds, found.labeler):
        if url is not None:
            _check_host(url)


def endpoint(data: bytes) -> None:
    """The same, whatever the text that names a host."""
    service = {
        "id": "#atproto_pds", "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": data.decode("utf-8", "replace"),
    }  # fmt: skip
    did_document(orjson.dumps({"id": seeds.DID, "service": [service]}))


def did(data: bytes) -> None:
    """The host of a did:web can be asked, and has one spelling."""
    text = data.decode("utf-8", "replace")
    if not syntax.is_did(text):
        return
    for directory in _directories():
        try:
            url, _ = directory._url(text)
        except IdentityNotFoundError:
            continue
        _check_host(url)
        if text.startswith("did:web:"):
            _check_endpoint(directory.web_host(text))


def redirect(data: bytes) -> None:
    """A redirect leads to a host that is known by its key, or is the host's fault."""
    text = data.decode("latin-1")
    found = outcome(lambda it: redirect_target(seeds.PDS, it), text, HttpError)
    if not refused(found):
        _check_host(found)


def url(data: bytes) -> None:
    """A URL that was taken is taken again as it is sent."""
    text = data.decode("utf-8", "replace")
    found = outcome(parse_url, text, InvalidUrlError)
    if not refused(found):
        origin, path = found
        sent = f"http{'s' * origin.secure}://{origin.authority}{path.decode()}"
        assert parse_url(sent) == found
        assert normal_host(origin.host) == origin.host
        _check_host(text)
    server = outcome(parse_endpoint, text, ValueError)
    if not refused(server):
        _check_endpoint(server)


def _check_host(url: str) -> None:
    host_key(url)
    is_public_name(urlsplit(url).hostname or "")
    with suppress(InvalidUrlError):
        assert normal_host(parse_url(url)[0].host) is not None


def _check_endpoint(server: Endpoint) -> None:
    assert parse_endpoint(str(server)) == server
    assert parse_url(str(server))[0].host == server.host
    is_public_name(server.host)


def handle(data: bytes) -> None:
    """Names and the answers of DNS are taken or not, whatever they are."""
    text = data.decode("utf-8", "replace")
    name = normal_host(text)
    assert name is None or normal_host(name) == name
    if is_public_name(text):
        assert name is not None
    if syntax.is_handle(text):
        assert syntax.is_handle(text.lower())
        assert normal_host(text) is not None
    found = did_of_records(data.split(b"\n"))
    assert found is None or syntax.is_did(found)


def headers(data: bytes) -> None:
    """What a server asks for is a pause of some length, or nothing."""
    lines = [line.partition(":") for line in data.decode("latin-1").splitlines()]
    found = {name.strip().lower(): value.strip() for name, _, value in lines}
    limit = read_rate_limit(found, SECONDS)
    pauses = [read_retry_after(value, SECONDS) for value in found.values()]
    if limit is not None:
        assert limit.remaining >= 0
        pauses.append(limit.reset_seconds)
    assert all(pause is None or 0 <= pause <= LONGEST_SECONDS for pause in pauses)


def whole_car(data: bytes) -> None:
    """A CAR is read alike as a whole and in pieces, and its repo is walked within bounds."""
    found = outcome(car.read_car, data, InvalidDataError)
    in_pieces = outcome(_read_in_pieces, data, InvalidDataError)
    if refused(found):
        assert refused(in_pieces)
        return
    assert in_pieces == found
    assert car.read_car(car.write_car(found.roots, found.blocks.items())) == found
    wanted = set(list(found.blocks)[:20])
    _, some = outcome(lambda it: car.find_blocks(it, wanted), data, InvalidDataError)
    assert some == {cid: found.blocks[cid] for cid in wanted}
    for root in found.roots:
        repo = outcome(parse_commit, found.blocks.get(root, b""), InvalidDataError)
        if not refused(repo):
            outcome(lambda it: list(walk(found.blocks, it)), repo.data, InvalidDataError)


def _read_in_pieces(data: bytes) -> car.Car:
    reader, blocks = car.CarReader(), dict[Cid, bytes]()
    for start in range(0, len(data), 100):
        blocks.update(reader.feed(data[start : start + 100]))
    return car.Car(reader.finish(), blocks)


def node(block: bytes) -> None:
    """A node of a tree has one form."""
    found = outcome(parse_block, block, InvalidDataError)
    if not refused(found):
        assert write_block(found.keys, found.values, found.children) == block


def commit_object(block: bytes) -> None:
    """A commit object has one form, and the bytes that were signed are a part of it."""
    found = outcome(parse_commit, block, InvalidDataError)
    if not refused(found):
        assert type(found) is Commit
        fields = cbor.decode(block)
        assert cbor.encode(fields) == block
        del fields["sig"]
        assert unsigned_bytes(found) == cbor.encode(fields)


def record(block: bytes) -> None:
    """A record that has a JSON form is read by every collection, or refused."""
    json = outcome(dagjson.record_to_json, block, InvalidDataError)
    if refused(json):
        return
    value = orjson.loads(json)
    relay_frame(commit([("create", "app.bsky.feed.post/3mptbypluud2a", block)]))
    kinds = {str(value.get("$type")), "app.bsky.feed.post", "app.bsky.actor.profile"}
    for nsid in kinds & _collections().keys():
        event(
            encode_record_event(
                "create", seq=1, time=NOW, did=seeds.DID, commit=str(Cid.of(b"")),
                rev="3mptbypluud2a", collection=nsid, rkey="self", cid=str(Cid.of(block)),
                record=orjson.Fragment(json),
            )
        )  # fmt: skip


def page(data: bytes) -> None:
    """Repos of a listing can be queued."""
    found = outcome(lambda it: read_page(it, "https://relay.test"), _json(data), HttpError)
    if not refused(found):
        for repo in found.repos:
            job = RepoJob(repo.did, seeds.PDS, repo.rev, repo.status, repo.active)
            assert decode_repo_job(encode_repo_job(job)) == job


def event(data: bytes) -> None:
    """An entry is read or refused, and is the same once it is written again."""
    read_entry({EVENT_FIELD: data}, _collections())
    read_labels({EVENT_FIELD: data})
    found = outcome(decode_event, data, MalformedEventError)
    if refused(found):
        return
    if not isinstance(found, RecordEvent):
        assert decode_event(encode_event(found)) == found
        return
    fields = found._asdict()
    del fields["json"]
    again = decode_event(encode_record_event(**fields))
    assert isinstance(again, RecordEvent)
    assert again._replace(json="") == found._replace(json="")
    assert found.record == (orjson.loads(found.json) if found.json else found.record)


def labels(data: bytes) -> None:
    """The labels of an entry are read or refused one by one."""
    for row in read_labels({LABELS_FIELD: data}).labels:
        assert datetimes.normalize(row.cts) == row.cts


def repo_job(data: bytes) -> None:
    """A repo job is the same once it is written again."""
    found = outcome(decode_repo_job, data, MalformedEventError)
    if not refused(found):
        assert decode_repo_job(encode_repo_job(found)) == found


def seen(data: bytes) -> None:
    """The body of a gRPC request names an account and a time, or is refused."""
    with suppress(GrpcError):
        found = read_seen(message_of(data))
        assert syntax.is_did(found.did)
        assert datetimes.is_readable_datetime(found.at)


def identifiers(data: bytes) -> None:
    """Texts are identifiers or not, with and without the compiled readers."""
    text = data.decode("utf-8", "replace")
    for rule in (
        syntax.is_did, syntax.is_handle, syntax.is_nsid, syntax.is_rkey, syntax.is_tid,
        syntax.is_at_uri, syntax.parse_at_uri, syntax.split_path, datetimes.is_datetime,
        check.is_cid, check.is_uri, check.is_language, check.is_lenient_at_uri,
        check.is_lenient_language, datetimes.is_readable_datetime,
    ):  # fmt: skip
        outcome(rule, text)
    time = outcome(datetimes.normalize, text)
    assert time is None or datetimes.normalize(time) == time
    number = outcome(syntax.tid_number, text, ValueError)
    assert refused(number) or syntax.tid_text(number) == text


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


@cache
def _collections() -> dict[str, Any]:
    return registry.load()


@cache
def _directories() -> list[Directory]:
    http = HttpClient(allow_private=True)
    return [Directory(http, "plc.test", allow_private=private) for private in (False, True)]


TARGETS = {
    target.name: target
    for target in (
        Target("frame", "frame", frame, seeds.frames),
        Target("relay_frame", "frame", relay_frame, seeds.frames),
        Target("labeler_frame", "frame", labeler_frame, seeds.label_frames),
        Target("label", "cbor", label, seeds.labels),
        Target("did_document", "json", did_document, seeds.documents),
        Target("endpoint", "text", endpoint, seeds.urls),
        Target("did", "text", did, seeds.dids),
        Target("redirect", "text", redirect, seeds.urls),
        Target("url", "text", url, seeds.urls),
        Target("handle", "text", handle, seeds.handles),
        Target("headers", "text", headers, seeds.headers),
        Target("car", "bytes", whole_car, seeds.cars),
        Target("node", "cbor", node, seeds.nodes),
        Target("commit", "cbor", commit_object, seeds.commits),
        Target("record", "cbor", record, seeds.records),
        Target("page", "json", page, seeds.pages),
        Target("event", "json", event, seeds.events),
        Target("labels", "json", labels, seeds.label_entries),
        Target("repo_job", "json", repo_job, seeds.repo_jobs),
        Target("seen", "bytes", seen, seeds.seen),
        Target("identifiers", "text", identifiers, seeds.texts),
    )
}
