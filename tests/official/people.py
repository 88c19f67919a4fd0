"""People on the official PDSes: random, repeatable writes, and the life of accounts.

What they write is made by the simulator's generator of records; the PDSes store, sign and publish
it. One thing happens after the other, so that there is one order that an indexer can be held to.
"""

import random
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.dagjson import to_json
from rsky_pipeline.atproto.syntax import tid_from
from rsky_pipeline.demo.simulator import mix
from rsky_pipeline.demo.simulator.accounts import SimulatedAccount
from rsky_pipeline.demo.simulator.records import RecordMaker, Reference, Subjects
from rsky_pipeline.demo.simulator.repo import Record, SimulatedRepo, Write
from tests.official.network import ADMIN, Network, Pds, XrpcError

# Hundredths; rare kinds are much more frequent than they are among real people.
KINDS = {
    mix.POST: 300, mix.LIKE: 180, mix.REPOST: 90, mix.FOLLOW: 90, mix.BLOCK: 20, mix.PROFILE: 40,
    mix.LIST: 25, mix.LIST_ITEM: 55, mix.LIST_BLOCK: 12, mix.OPT_OUT: 12, mix.POST_GATE: 15,
    mix.GENERATOR: 12, mix.STARTER_PACK: 15, mix.LABELER: 6, mix.VERIFICATION: 20, mix.STATUS: 12,
    mix.NOTIFICATIONS: 8, mix.CHAT: 8, mix.GERM: 6, mix.UNKNOWN: 6, mix.FOREIGN[0]: 8,
}  # fmt: skip
ACTS = {"create": 700, "several": 70, "delete": 80, "edit": 90, "again": 40, "spoil": 20}
_LIFE = {
    "rename": 5, "swap": 2, "join": 4, "deactivate": 4, "reactivate": 3, "take down": 3, "lift": 2,
    "delete": 3,
}  # fmt: skip
START = 1_736_150_400_000_000  # microseconds: the records' clock begins on 2025-01-06
_REPEATABLE = frozenset({mix.LIKE, mix.REPOST, mix.FOLLOW, mix.BLOCK, mix.LIST_ITEM})
_WRITES = "com.atproto.repo.applyWrites"
_LABELS = ("spam", "porn", "rude", "!warn", "!hide", "custom-one")
_OWN_BLOB = "official blob of"


@dataclass(slots=True)
class Person:
    """An account, and the records that it has."""

    account: SimulatedAccount
    pds: Pds
    password: str
    token: str
    status: str | None = None  # None: active
    records: dict[str, Record] = field(default_factory=dict)
    blobs: dict[str, Any] = field(default_factory=dict)  # media type -> blob

    @property
    def did(self) -> str:
        """Its DID."""
        return self.account.did


class People:
    """Everybody, and what they have done."""

    def __init__(self, network: Network, seed: int) -> None:
        self.network = network
        self.choose = random.Random(seed)
        self.subjects = Subjects(self.choose)
        self._maker = RecordMaker(self.choose, self.subjects)
        self.everybody: list[Person] = []
        self.now = START
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # by the PDS
        self.edited: set[str] = set()  # uris
        self.gone: set[str] = set()  # deleted accounts
        self.moved: set[str] = set()  # accounts that live on another PDS now
        self.imported: set[str] = set()  # accounts that have a repo from elsewhere
        self.labels: list[tuple[dict[str, Any], list[str]]] = []
        self.before: Callable[[Pds], None] = lambda _: None  # called before each write
        self._last: Pds | None = None

    # Accounts

    def join(self, pds: Pds) -> Person:
        """Make an account."""
        number = len(self.everybody)
        self.turn(pds)
        body = {
            "handle": f"person{number}{pds.domain}", "email": f"person{number}@example.org",
            "password": f"password of {number}",
        }  # fmt: skip
        made = self.network.call(pds.url, "com.atproto.server.createAccount", json=body)
        key = PrivateKey.from_seed("k256", b"unused")
        account = SimulatedAccount(
            number, made["did"], body["handle"], key, SimulatedRepo(made["did"], key)
        )
        person = Person(account, pds, body["password"], made["accessJwt"])
        self.everybody.append(person)
        self.subjects.dids.append(person.did)
        self.counts["account"] += 1
        return person

    def call(self, person: Person, method: str, body: Any = None, **options: Any) -> Any:
        """Call a method of a person's PDS as that person."""
        headers = {"authorization": f"Bearer {person.token}"}
        return self.network.call(person.pds.url, method, json=body, headers=headers, **options)

    def manage(self, pds: Pds, method: str, body: Any) -> Any:
        """Call a method of a PDS as its administrator."""
        return self.network.call(pds.url, method, json=body, headers=admin_headers())

    def active(self) -> list[Person]:
        """Return the accounts that can write."""
        return [person for person in self.everybody if person.status is None]

    def somebody(self) -> Person:
        """Return an active account, probably an older one."""
        active = self.active()
        return active[int(len(active) * self.choose.random() ** 1.5)]

    def rename(self, person: Person, handle: str) -> None:
        """Change a handle."""
        self.turn(person.pds)
        self.call(person, "com.atproto.identity.updateHandle", {"handle": handle})
        person.account.handle = handle
        self.counts["handle"] += 1

    def deactivate(self, person: Person) -> None:
        """Let an account pause."""
        self.turn(person.pds)
        self.call(person, "com.atproto.server.deactivateAccount", {})
        person.status = "deactivated"
        self.counts["deactivated"] += 1

    def reactivate(self, person: Person) -> None:
        """Let an account come back."""
        self.turn(person.pds)
        self.call(person, "com.atproto.server.activateAccount")
        person.status = None
        self.counts["reactivated"] += 1

    def take_down(self, person: Person, *, applied: bool = True) -> None:
        """Take an account down at its PDS, or lift that."""
        self.turn(person.pds)
        subject = {"$type": "com.atproto.admin.defs#repoRef", "did": person.did}
        takedown = {"applied": True, "ref": "test"} if applied else {"applied": False}
        self.manage(person.pds, "com.atproto.admin.updateSubjectStatus",
                    {"subject": subject, "takedown": takedown})  # fmt: skip
        person.status = "takendown" if applied else None
        if not applied:
            self.log_in(person)
        self.counts["takedown" if applied else "takedown lifted"] += 1

    def delete(self, person: Person) -> None:
        """Delete an account for good."""
        self.turn(person.pds)
        self.manage(person.pds, "com.atproto.admin.deleteAccount", {"did": person.did})
        person.status = "deleted"
        self.gone.add(person.did)
        self.counts["deleted"] += 1

    def rotate_key(self, person: Person, *, announced: bool) -> None:
        """Give an account another key, with an #identity event or without."""
        self.turn(person.pds)
        secret = self.choose.randbytes(32)
        pds = person.pds
        self.network.change_document(person.did, pds.rotation_key, keys={"atproto": secret.hex()})
        [file] = pds.folder.glob(f"actors/*/{person.did}/key")
        file.write_bytes(secret)
        if announced:
            self.call(person, "com.atproto.identity.updateHandle",
                      {"handle": person.account.handle})  # fmt: skip
        self.counts["key, announced" if announced else "key, silently"] += 1

    def migrate(self, person: Person, pds: Pds) -> None:
        """Move an account to another PDS, with its records and blobs."""
        old, token = person.pds, person.token
        self.turn(old)
        audience, method = "did:web:localhost", "com.atproto.server.createAccount"
        proof = self.call(
            person, "com.atproto.server.getServiceAuth", get=True, aud=audience, lxm=method
        )
        handle = f"moved{self.counts['migration']}{pds.domain}"
        made = self.network.call(
            pds.url, method, headers={"authorization": f"Bearer {proof['token']}"},
            json={"did": person.did, "handle": handle, "password": person.password,
                  "email": f"{person.account.number}.{handle}@example.org"},
        )  # fmt: skip
        get_repo = f"{old.url}/xrpc/com.atproto.sync.getRepo"
        car = self.network.http.get(get_repo, params={"did": person.did}).raise_for_status()
        self.turn(pds)
        person.pds, person.token = pds, made["accessJwt"]
        self._upload(person, "com.atproto.repo.importRepo", car.content, "application/vnd.ipld.car")
        missing = self.call(person, "com.atproto.repo.listMissingBlobs", get=True)["blobs"]
        for each in missing:
            query = {"did": person.did, "cid": each["cid"]}
            blob = self.network.http.get(f"{old.url}/xrpc/com.atproto.sync.getBlob", params=query)
            media = blob.headers["content-type"]
            self._upload(person, "com.atproto.repo.uploadBlob", blob.content, media)
        wanted = self.call(person, "com.atproto.identity.getRecommendedDidCredentials", get=True)
        self.network.change_document(
            person.did, old.rotation_key, keys=wanted["verificationMethods"], pds=pds.url,
            handle=handle, rotation=pds.rotation_key,
        )  # fmt: skip
        self.call(person, "com.atproto.server.activateAccount")
        self.turn(old)
        headers = {"authorization": f"Bearer {token}"}
        self.network.call(old.url, "com.atproto.server.deactivateAccount", json={}, headers=headers)
        person.account.handle = handle
        self.moved.add(person.did)
        self.counts["migration"] += 1

    def import_repo(self, person: Person, records: int) -> None:
        """Bring so many records into an account that has none; its PDS announces nothing."""
        self.turn(person.pds)
        [file] = person.pds.folder.glob(f"actors/*/{person.did}/key")
        key = PrivateKey("k256", file.read_bytes())
        writes: dict[str, Write] = {}
        while len(writes) < records:
            for write in self._writes(person, "create"):
                writes.setdefault(write.path, write)
        repo = SimulatedRepo(person.did, key)
        repo.load(writes.values(), tid_from(self.now), self.now)
        self._upload(person, "com.atproto.repo.importRepo", repo.car(), "application/vnd.ipld.car")
        for path, write in writes.items():
            person.records[path] = write.record or {}
        self.imported.add(person.did)
        self.counts["imported"] += len(writes)

    def _upload(self, person: Person, method: str, content: bytes, media: str) -> None:
        headers = {"authorization": f"Bearer {person.token}", "content-type": media}
        self.network.call(person.pds.url, method, headers=headers, content=content)

    def label(self) -> None:
        """Let the labeler say something about a post or an account, or take it back."""
        post = self.choose.choice(self.subjects.posts)
        subject: dict[str, Any] = {
            "$type": "com.atproto.repo.strongRef", "uri": post.uri, "cid": post.cid
        }  # fmt: skip
        if self.choose.random() < 0.3:
            subject = {"$type": "com.atproto.admin.defs#repoRef", "did": self.somebody().did}
        values: list[str] = [self.choose.choice(_LABELS)]
        gone: list[str] = []
        if self.labels and self.choose.random() < 0.25:
            subject, gone = self.choose.choice(self.labels)
            values = []
        else:
            self.labels.append((subject, values))
        self._emit_label(subject, values, gone)

    def _emit_label(self, subject: dict[str, Any], values: list[str], gone: list[str]) -> None:
        event = {"$type": "tools.ozone.moderation.defs#modEventLabel",
                 "createLabelVals": values, "negateLabelVals": gone}  # fmt: skip
        body = {"event": event, "subject": subject, "createdBy": self.network.labeler}
        self.network.call(self.network.ozone, "tools.ozone.moderation.emitEvent", json=body,
                          headers=admin_headers())  # fmt: skip
        self.counts["labels"] += 1

    def label_versions(self) -> None:
        """Let the labeler say one thing about an older and then about a newer version of a post."""
        versions: dict[str, list[Reference]] = {}
        for each in self.subjects.posts:
            versions.setdefault(each.uri, []).append(each)
        several = [found for found in versions.values() if len({each.cid for each in found}) > 1]
        value = self.choose.choice(_LABELS)
        for post in self.choose.choice(several):
            self._emit_label({
                "$type": "com.atproto.repo.strongRef", "uri": post.uri, "cid": post.cid
            }, [value], [])  # fmt: skip

    def rotate_labeler_key(self) -> None:
        """Have the labeler sign with another key from now on."""
        network, secret = self.network, self.choose.randbytes(32).hex()
        network.change_document(
            network.labeler, network.labeler_key, keys={"atproto_label": secret}
        )
        network.restart_ozone(secret)
        self.counts["key of the labeler"] += 1

    def log_in(self, person: Person) -> None:
        """Open another session."""
        body = {"identifier": person.account.handle, "password": person.password}
        session = self.network.call(person.pds.url, "com.atproto.server.createSession", json=body)
        person.token = session["accessJwt"]

    def swap_handles(self) -> None:
        """Let three accounts of one PDS pass their handles on in a circle."""
        pds = self.network.pdses[0]
        three = self.choose.sample([each for each in self.active() if each.pds is pds], 3)
        handles = [person.account.handle for person in three]
        self.rename(three[0], f"between{self.counts['handle']}{pds.domain}")
        for person, handle in ((three[1], handles[0]), (three[2], handles[1])):
            self.rename(person, handle)
        self.rename(three[0], handles[2])
        self.counts["three-way swap"] += 1

    def live(self, acts: int, settle: Callable[[], None]) -> Iterator[int]:
        """Let people do so many things, and accounts begin, change and end meanwhile.

        Yields after each. `settle` is called before an account is deleted: its PDS forgets the
        events of before, and who is behind never sees them.
        """
        plan = [event for event, times in _LIFE.items() for _ in range(times)]
        self.choose.shuffle(plan)
        places = sorted(self.choose.sample(range(acts // 8, acts), len(plan)))
        events = dict(zip(places, plan, strict=True))
        for number in range(acts):
            event = events.get(number)
            if event == "delete":
                settle()
            if event:
                self._change(event)
            self.act()
            yield number

    def _change(self, event: str) -> None:
        paused = [each for each in self.everybody if each.status == "deactivated"]
        down = [each for each in self.everybody if each.status == "takendown"]
        match event:
            case "rename":
                person = self.somebody()
                self.rename(person, f"renamed{self.counts['handle']}{person.pds.domain}")
            case "swap":
                self.swap_handles()
            case "join":
                self.join(self.choose.choice(self.network.pdses))
            case "reactivate" if paused:
                self.reactivate(self.choose.choice(paused))
            case "lift" if down:
                self.take_down(self.choose.choice(down), applied=False)
            case "take down":
                self.take_down(self.somebody())
            case "delete":
                self.delete(self.somebody())
            case _:
                self.deactivate(self.somebody())

    # Records

    def act(self) -> None:
        """Let somebody do something."""
        self.act_as(self.somebody())

    def act_as(self, person: Person) -> None:
        """Let a person do something."""
        act = self.choose.choices(list(ACTS), list(ACTS.values()))[0]
        writes: dict[str, Write] = {}
        for _ in range(self.choose.randint(2, 8) if act == "several" else 1):
            for write in self._writes(person, act):
                writes.setdefault(write.path, write)
        if writes:
            self.write(person, list(writes.values()), validate=None if act != "spoil" else False)

    def write(self, person: Person, writes: list[Write], *, validate: bool | None = None) -> None:
        """Commit writes; what the PDS refuses is counted."""
        self.turn(person.pds)
        body: dict[str, Any] = {"repo": person.did, "writes": []}
        if validate is not None:
            body["validate"] = validate
        for write in writes:
            collection, _, rkey = write.path.partition("/")
            known = write.path in person.records
            action = "delete" if write.record is None else "update" if known else "create"
            item = {"$type": f"{_WRITES}#{action}", "collection": collection, "rkey": rkey}
            if write.record is not None:
                item["value"] = self._uploaded(person, orjson.loads(to_json(write.record)))
            body["writes"].append(item)
        try:
            results = self.call(person, _WRITES, body)["results"]
        except XrpcError as error:
            self.refused[error.name or str(error.status)] += 1
            return
        for write, item, result in zip(writes, body["writes"], results, strict=True):
            self._note(person, write, item, result)

    def _note(self, person: Person, write: Write, item: dict[str, Any], result: Any) -> None:
        collection = item["collection"]
        uri = person.account.uri(write.path)
        if write.record is None:
            person.records.pop(write.path, None)
            self.counts["deletes"] += 1
            return
        if write.path in person.records:
            self.edited.add(uri)
            self.counts["updates"] += 1
        else:
            self.counts["creates"] += 1
        person.records[write.path] = write.record
        if collection in mix.REACTED_TO:
            root = write.record.get("reply", {}).get("root")
            thread = Reference(root["uri"], root["cid"], "") if root else None
            self.subjects.add(collection, Reference(uri, result["cid"], person.did, thread))

    def _writes(self, person: Person, act: str) -> Iterator[Write]:
        self.now += self.choose.randrange(1_000, 60_000_000)
        if act == "several":
            act = self.choose.choices(("create", "delete", "edit"), (7, 2, 1))[0]
        paths = [path for path in person.records if act != "again" or _kind(path) in _REPEATABLE]
        if act in ("create", "spoil") or not paths:
            kind = self.choose.choices(list(KINDS), list(KINDS.values()))[0]
            for write in self._maker.make(kind, person.account, self.now):
                record = write.record
                spoilt = act == "spoil" and record is not None
                yield Write(write.path, self._spoilt(record or {})) if spoilt else write
            return
        path = self.choose.choice(paths)
        record = person.records[path]
        if act == "delete":
            yield Write(path, None)
        elif act == "edit":
            yield Write(path, self._maker.edited(path, record, person.account, self.now))
        else:
            [write] = self._maker.make(mix.CHAT, person.account, self.now)
            assert write.record is not None
            again = record | {"createdAt": write.record["createdAt"]}
            yield Write(f"{_kind(path)}/{self._rkey()}", again)

    def _rkey(self) -> str:
        [write] = self._maker.make(mix.FOLLOW, self.everybody[0].account, self.now)
        return write.path.partition("/")[2]

    def _spoilt(self, record: Record) -> Record:
        """Return a record that its lexicon forbids."""
        match self.choose.randrange(4):
            case 0:
                return record | {"createdAt": "yesterday"}
            case 1:
                return {name: value for name, value in record.items() if name != "createdAt"}
            case 2 if "text" in record:
                return record | {"text": "x" * 4_000}
        return record | dict.fromkeys(("subject", "text", "post", "displayName"), 1)

    def _uploaded(self, person: Person, value: Any) -> Any:
        """Return a record with its blobs replaced by ones that its PDS has."""
        if isinstance(value, list):
            return [self._uploaded(person, each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.get("$type") != "blob":
            return {name: self._uploaded(person, each) for name, each in value.items()}
        media = value["mimeType"]
        if media not in person.blobs:
            headers = {"authorization": f"Bearer {person.token}", "content-type": media}
            content = f"{_OWN_BLOB} {person.did}: {media}".encode()
            person.blobs[media] = self.network.call(
                person.pds.url, "com.atproto.repo.uploadBlob", headers=headers, content=content
            )["blob"]
        return person.blobs[media]

    def turn(self, pds: Pds) -> None:
        """Call it before each event of a PDS.

        Where the next event is another PDS's, let everybody read those of the last one first."""
        if self._last is not None and self._last is not pds:
            self.before(self._last)
        self._last = pds


def admin_headers() -> dict[str, str]:
    """Return the headers of an administrator."""
    return {"authorization": "Basic " + b64encode(f"admin:{ADMIN}".encode()).decode()}


def _kind(path: str) -> str:
    return path.partition("/")[0]
