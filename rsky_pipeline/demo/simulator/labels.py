"""A simulated labeler: signed labels on accounts and posts, retracted and renewed."""

import random
from dataclasses import dataclass
from typing import Any

from rsky_pipeline.atproto.cbor import encode
from rsky_pipeline.atproto.crypto import PrivateKey
from rsky_pipeline.atproto.frame import encode_frame
from rsky_pipeline.demo.simulator.accounts import DOMAIN, did_document, plc_did
from rsky_pipeline.demo.simulator.clock import DAY, Clock, TimeText
from rsky_pipeline.demo.simulator.records import Subjects

_VALUES = ("spam", "rude", "porn", "!hide", "!warn", "needs-review", "impersonation", "café")
Label = dict[str, Any]
Key = tuple[str, str, str, str]  # src, uri, cid, val


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest label of a key."""

    neg: bool
    cts: str
    exp: str | None


class Labeler:
    """Publishes label frames; everything follows from the seed and the clock."""

    def __init__(self, seed: int, clock: Clock, subjects: Subjects) -> None:
        self.did = plc_did(f"labeler {seed}")
        self.handle = f"labels.{DOMAIN}"
        self.key = PrivateKey.from_seed("k256", f"labels {seed}".encode())
        self.seq = 0
        self.standing: dict[Key, Standing] = {}
        self._choose = random.Random(f"labels {seed}")
        self._clock = clock
        self._text = TimeText()
        self._subjects = subjects
        self._last = 0

    def document(self, endpoint: str) -> dict[str, Any]:
        """Return the labeler's DID document."""
        services = {"atproto_labeler": ("AtprotoLabeler", endpoint)}
        return did_document(self.did, self.handle, {"atproto_label": self.key.multibase}, services)

    def step(self) -> bytes:
        """Publish one to three labels in a frame and return it."""
        self.seq += 1
        labels: dict[Key, Label] = {}
        for _ in range(self._choose.choices((1, 2, 3), (80, 15, 5))[0]):
            label = self._label()
            labels[_key(label)] = label
        for key, label in labels.items():
            self.standing[key] = Standing(label.get("neg", False), label["cts"], label.get("exp"))
        signed = [label | {"sig": self.key.sign(encode(label))} for label in labels.values()]
        return encode_frame("#labels", {"seq": self.seq, "labels": signed})

    def _label(self) -> Label:
        # Two labels of one millisecond would leave open which of them stands.
        now = self._last = max(self._clock.now(), self._last + 1_000)
        label: Label = {"ver": 1, "src": self.did, "cts": self._text(now)}
        if self.standing and self._choose.random() < 0.3:
            _, uri, cid, value = self._choose.choice(list(self.standing)[-200:])
            label |= {"uri": uri, "val": value} | ({"cid": cid} if cid else {})
            if self._choose.random() < 0.7:
                label["neg"] = True
            return label
        post = self._subjects.post()
        if post is None or self._choose.random() < 0.3:
            label["uri"] = self._subjects.did()
        else:
            label["uri"] = post.uri
            if self._choose.random() < 0.3:
                label["cid"] = post.cid
        label["val"] = self._choose.choice(_VALUES)
        if self._choose.random() < 0.1:
            label["exp"] = self._text(now + self._choose.randrange(-2, 30) * DAY)
        return label


def _key(label: Label) -> Key:
    return label["src"], label["uri"], label.get("cid", ""), label["val"]
