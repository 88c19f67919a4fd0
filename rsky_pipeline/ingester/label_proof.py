"""Whether labels were made by the labeler that they name.

Every label is signed by its `src` with the key `#atproto_label` of its DID document, never with the
key of its repo; so a label is proven whatever stream carries it. A key may have changed: before a
signature is called wrong the document is fetched anew, once in a while for each labeler. While the
directory does not answer, the labeler's stream waits; each has a connection of its own.
Source: https://atproto.com/specs/label#signatures.
"""

from dataclasses import dataclass
from enum import StrEnum

import trio

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import LabelsMessage
from rsky_pipeline.atproto.identity import DidDocument
from rsky_pipeline.atproto.labels import Label, parse_label
from rsky_pipeline.configuration.settings import LabelSignatures
from rsky_pipeline.ingester.tally import Tally
from rsky_pipeline.ingester.verify import KeyDirectory
from rsky_pipeline.network.directory import IdentityNotFoundError, IdentityUnavailableError
from rsky_pipeline.runtime.boundary import Boundary

RETRY_SECONDS = 2.0
STRANGER_TRIES = 3  # for hosts of did:web, which may be anybody's, and unusable documents


class LabelVerdict(StrEnum):
    """What is known of a label; the values are metric labels."""

    VALID = "valid"
    FORGED = "forged"  # signed with another key than the labeler's
    UNSIGNED = "unsigned"
    NO_KEY = "no_key"  # its labeler does not exist, or has no key for labels
    UNVERIFIED = "unverified"  # its labeler's document cannot be fetched


@dataclass(frozen=True, slots=True)
class Sifted:
    """The labels of a frame that may be written, and why others may not."""

    message: LabelsMessage
    refused: tuple[LabelVerdict, ...]


class LabelProof:
    """Checks labels; `require` refuses also those that can neither be proven nor refuted."""

    def __init__(self, directory: KeyDirectory, mode: LabelSignatures, tally: Tally) -> None:
        self._directory = directory
        self._written = {LabelVerdict.VALID}
        if mode == "check":
            self._written |= {LabelVerdict.UNSIGNED, LabelVerdict.NO_KEY, LabelVerdict.UNVERIFIED}
        self._tally = tally
        self._boundary = Boundary(tally.internal_error)

    async def sift(self, message: LabelsMessage) -> Sifted:
        """Leave out what may not be written. Malformed labels stay: their reader refuses them."""
        kept, refused = [], list[LabelVerdict]()
        for item in message.labels:
            try:
                verdict = await self.verdict(parse_label(item))
            except InvalidDataError:
                kept.append(item)
                continue
            except Exception as error:  # noqa: BLE001 - see runtime.boundary
                self._boundary.caught(error, "label", src=str(item.get("src"))[:200])
                verdict = LabelVerdict.UNVERIFIED
            self._tally.label_verdicts[verdict.value] += 1
            if verdict in self._written:
                kept.append(item)
            else:
                refused.append(verdict)
        return Sifted(LabelsMessage(message.seq, tuple(kept)), tuple(refused))

    async def verdict(self, label: Label) -> LabelVerdict:
        """Return what is known of a label, after looking up what it takes."""
        if label.sig is None:
            return LabelVerdict.UNSIGNED
        try:
            document = await self._resolve(label.src, force=False)
            if document.label_key is not None and label.verify(document.label_key):
                return LabelVerdict.VALID
            document = await self._resolve(label.src, force=True)
        except IdentityNotFoundError:
            return LabelVerdict.NO_KEY
        except IdentityUnavailableError:
            return LabelVerdict.UNVERIFIED
        if document.label_key is None:
            return LabelVerdict.NO_KEY
        return LabelVerdict.VALID if label.verify(document.label_key) else LabelVerdict.FORGED

    async def _resolve(self, did: str, *, force: bool) -> DidDocument:
        tries = 0
        while True:
            try:
                return await self._directory.resolve(did, force)
            except IdentityUnavailableError as error:
                tries += 1
                stranger = error.of_account or not did.startswith("did:plc:")
                if stranger and tries >= STRANGER_TRIES:
                    raise
            await trio.sleep(RETRY_SECONDS)
