"""Whether another ingester writes into the same Redis.

Two would read everything twice and set each other's cursors back and forth. Each notes itself in a
hash of Redis every few seconds. One whose note was renewed while we looked is running; the note of
one that was killed only grows old.
"""

import os
import secrets
import socket

import orjson
import trio

from rsky_pipeline.health.rules import SECOND_INGESTER, RuleVerdict, judged
from rsky_pipeline.runtime.context import WorkerContext
from rsky_pipeline.runtime.errors import printable
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.connection import Store
from rsky_pipeline.streams.errors import WritesRefusedError
from rsky_pipeline.streams.names import INGESTERS

_NOTE_SECONDS = 5.0
_FORGOTTEN_SECONDS = 60.0  # notes that were not renewed for so long are removed
_LOOKS = 3  # after which one that did not renew its note has ended


class OtherIngesters:
    """Notes this ingester, and looks for others."""

    def __init__(self, context: WorkerContext) -> None:
        self.verdicts: list[RuleVerdict] = []
        self._id = secrets.token_hex(8).encode()
        self._who = f"{socket.gethostname()} pid {os.getpid()}, {context.settings.run_dir}"
        self._count = 0
        self._old: list[bytes] = []  # ids of notes to be removed
        # By id: the note, when it was renewed last, and whether it was renewed since we look.
        self._seen: dict[bytes, tuple[bytes, float, bool]] = {}

    async def watch(self, link: Link[Store]) -> None:
        """Note and look until cancelled."""
        while True:
            notes = await link.attempt(self._look)
            if notes is not None:
                self.observe(notes, trio.current_time())
            await trio.sleep(_NOTE_SECONDS)

    def observe(self, notes: dict[bytes, bytes], now: float) -> None:
        """Take the notes of all ingesters at a time, in seconds."""
        seen: dict[bytes, tuple[bytes, float, bool]] = {}
        for who, note in notes.items():
            before, since, renewed = self._seen.get(who, (note, now, False))
            moved = before != note
            seen[who] = (note, now if moved else since, renewed or moved)
        self._seen = seen
        self._old = [who for who, (_, since, _) in seen.items() if now - since > _FORGOTTEN_SECONDS]
        running = [
            _name(note)
            for who, (note, since, renewed) in seen.items()
            if who != self._id and renewed and now - since < _LOOKS * _NOTE_SECONDS
        ]
        self.verdicts = []
        if running:
            figure = f"this is {self._who}; beside it writes {', '.join(running)}"
            self.verdicts = [judged(SECOND_INGESTER, "", len(running), figure)]

    def _look(self, store: Store) -> dict[bytes, bytes]:
        self._count += 1
        try:
            store.call("HSET", INGESTERS, self._id, orjson.dumps([self._count, self._who]))
            if self._old:
                store.call("HDEL", INGESTERS, *self._old)
        except WritesRefusedError:
            pass  # it is full, or a replica: others say so, and nobody writes now
        flat = store.call("HGETALL", INGESTERS)
        return dict(zip(flat[::2], flat[1::2], strict=True))


def _name(note: bytes) -> str:
    try:
        return printable(orjson.loads(note)[1])
    except (ValueError, TypeError, IndexError, KeyError):
        return "one of another version"
