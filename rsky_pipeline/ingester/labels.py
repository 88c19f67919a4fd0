"""Labelers: their frames, and the signatures of their labels.

One frame becomes one entry of `label_live`. The fields are those of the Rust service, and `exp`.

Every label is signed by its `src` with the key `#atproto_label` of its DID document, never with the
key of its repo; so a label is proven whatever stream carries it. A key may have changed: before a
signature is called wrong the document is fetched anew, once in a while for each labeler. While the
directory does not answer, the labeler's stream waits; each has a connection of its own. The wait
ends where the directory answers for others, and after an hour: the label is unverified then.
https://atproto.com/specs/label#signatures
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import trio

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import LabelsMessage, Message
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.atproto.labels import Label, parse_label
from rsky_pipeline.configuration.settings import LabelSignatures
from rsky_pipeline.ingester.commits.signatures import KeyDirectory
from rsky_pipeline.ingester.frames import (
    FrameConverter,
    FrameReader,
    PendingFrame,
    ReadFrame,
)
from rsky_pipeline.ingester.sequence import SeqGate
from rsky_pipeline.ingester.writer import FrameSink
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.runtime.shared_tasks import SharedTasks
from rsky_pipeline.streams.append import Entry
from rsky_pipeline.streams.event import LABELS_FIELD, encode_labels
from rsky_pipeline.streams.names import LABEL_LIVE

SUBSCRIBE_LABELS = "com.atproto.label.subscribeLabels"
RETRY_SECONDS = 2.0
PATIENCE_SECONDS = 3_600.0  # for a directory that answers nobody
STRANGER_TRIES = 3  # for hosts of did:web, which may be anybody's, and unusable documents


class LabelIntake:
    """The frames of one connection to a labeler, on their way to the writer."""

    def __init__(
        self,
        converter: "LabelConverter",
        sink: FrameSink,
        gate: SeqGate,
        signatures: "LabelSignatureCheck | None" = None,
    ) -> None:
        """`signatures` is None where labels are written whoever signed them."""
        self._converter = converter
        self._reader = FrameReader(converter, gate)
        self._sink = sink
        self._signatures = signatures

    async def take(self, messages: Sequence[bytes]) -> None:
        """Take frames as they came from the socket, and wait for the keys of their labels."""
        for item in self._reader.read(messages):
            self._sink.put([await self._convert(item)])

    async def _convert(self, item: ReadFrame) -> PendingFrame:
        message, raw, covered = item
        if isinstance(message, PendingFrame):
            frame = message
        elif isinstance(message, LabelsMessage) and self._signatures is not None:
            frame = await self._checked(message, raw, self._signatures)
        else:
            frame = self._converter.convert_read(message, raw)
        frame.seq = covered
        return frame

    async def _checked(
        self, message: LabelsMessage, raw: bytes, signatures: "LabelSignatureCheck"
    ) -> PendingFrame:
        """Convert the labels that may be written; each of the others costs a raw dead letter."""
        sifted = await signatures.sift(message)
        refused = [
            entry
            for status in sifted.refused
            for entry in self._converter.keep_raw(raw, f"label_{status}", "not proven")
        ]
        frame = self._converter.convert_read(sifted.message, raw)
        frame.entries = [*refused, *frame.entries]
        frame.size += sum(len(entry.payload) for entry in refused)
        return frame


class LabelConverter(FrameConverter):
    """Frames of `subscribeLabels`."""

    def convert_message(self, message: Message, raw: bytes) -> PendingFrame:
        """Convert a decoded message; a malformed label costs only itself."""
        if not isinstance(message, LabelsMessage):
            return super().convert_message(message, raw)
        entries: list[Entry] = []
        labels: list[dict[str, Any]] = []
        for label in message.labels:
            try:
                labels.append(_fields(parse_label(label)))
            except InvalidDataError as error:
                entries += self.keep_raw(raw, error.reason, str(error))
        if labels:
            payload = encode_labels(message.seq, labels)
            entries.append(Entry(LABEL_LIVE, LABELS_FIELD, payload))
        return PendingFrame(
            message.seq, None, entries, sum(len(entry.payload) for entry in entries)
        )


def _fields(label: Label) -> dict[str, Any]:
    """Return the fields of a label that are passed on; an absent `neg` stays absent."""
    return {
        "src": label.src, "uri": label.uri, "cid": label.cid, "val": label.val,
        "neg": label.fields.get("neg"), "cts": label.cts, "exp": label.exp,
    }  # fmt: skip


class LabelStatus(StrEnum):
    """The result of checking a label; the values are metric labels."""

    VALID = "valid"
    FORGED = "forged"  # signed with another key than the labeler's
    UNSIGNED = "unsigned"
    NO_KEY = "no_key"  # its labeler does not exist, or has no key for labels
    UNVERIFIED = "unverified"  # its labeler's document cannot be fetched


@dataclass(frozen=True, slots=True)
class Sifted:
    """The labels of a frame that may be written, and why others may not."""

    message: LabelsMessage
    refused: tuple[LabelStatus, ...]


class LabelSignatureCheck:
    """Checks labels; `require` refuses also those that can neither be proven nor refuted."""

    def __init__(
        self, directory: KeyDirectory, mode: LabelSignatures, converter: FrameConverter,
        nursery: trio.Nursery | None = None,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._written = {LabelStatus.VALID}
        if mode == "check":
            self._written |= {LabelStatus.UNSIGNED, LabelStatus.NO_KEY, LabelStatus.UNVERIFIED}
        self._counters = converter.counters
        self._boundary = converter.boundary
        # They belong to the account: a connection that ends does not end them.
        self._lookups: SharedTasks[DidDocument] = SharedTasks(nursery)

    async def sift(self, message: LabelsMessage) -> Sifted:
        """Leave out labels that must not be written.

        Malformed ones stay: conversion, which parses them alike, keeps them aside.
        """
        kept, refused = [], list[LabelStatus]()
        for item in message.labels:
            try:
                status = await self.status(parse_label(item))
            except InvalidDataError:
                kept.append(item)
                continue
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "label", src=str(item.get("src"))[:200])
                status = LabelStatus.UNVERIFIED
            self._counters.label_verdicts[status.value] += 1
            if status in self._written:
                kept.append(item)
            else:
                refused.append(status)
        return Sifted(LabelsMessage(message.seq, tuple(kept)), tuple(refused))

    async def status(self, label: Label) -> LabelStatus:
        """Return the status of a label's signature, after looking up its key."""
        if label.sig is None:
            return LabelStatus.UNSIGNED
        try:
            document = await self._resolve(label.src, force=False)
            if document.label_key is not None and label.verify(document.label_key):
                return LabelStatus.VALID
            document = await self._resolve(label.src, force=True)
        except IdentityNotFoundError:
            return LabelStatus.NO_KEY
        except IdentityUnavailableError:
            return LabelStatus.UNVERIFIED
        if document.label_key is None:
            return LabelStatus.NO_KEY
        return LabelStatus.VALID if label.verify(document.label_key) else LabelStatus.FORGED

    async def _resolve(self, did: str, *, force: bool) -> DidDocument:
        return await self._lookups.call((did, force), partial(self._look_up, did, force))

    async def _look_up(self, did: str, force: bool) -> DidDocument:
        tries, give_up_at = 0, trio.current_time() + PATIENCE_SECONDS
        while True:
            try:
                return await self._directory.resolve(did, force)
            except IdentityUnavailableError as error:
                tries += 1
                stranger = error.of_account or not did.startswith("did:plc:")
                if (stranger and tries >= STRANGER_TRIES) or trio.current_time() >= give_up_at:
                    raise
            await trio.sleep(RETRY_SECONDS)
