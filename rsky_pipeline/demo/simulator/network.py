"""A simulated network as a service: four hosts on loopback, and the passing of time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import orjson
import trio

from rsky_pipeline.demo.simulator.faults import FAULTS, OF_ACCOUNTS, Hostility
from rsky_pipeline.demo.simulator.hosts import SimulatedHosts, Stream, Urls
from rsky_pipeline.demo.simulator.http import (
    Handler,
    Request,
    SimulatedResponse,
    Upgrade,
    json_response,
    serve_connection,
)
from rsky_pipeline.demo.simulator.recording import Recording
from rsky_pipeline.demo.simulator.state import state_of
from rsky_pipeline.demo.simulator.subscription import EventLog, StreamRules
from rsky_pipeline.demo.simulator.tables import TABLES
from rsky_pipeline.demo.simulator.truth import truth
from rsky_pipeline.demo.simulator.world import World

LABEL_EVERY = 40  # events for each frame of labels
LABELS_BEFORE = 20  # frames of labels from before the stream
_TICK_SECONDS = 0.02
_ROWS_A_LINE = 1_000
_NAMES = ("relay", "pds", "plc", "labeler")


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of the hosts; a base of 0 picks free ones, another one is the relay's."""

    base: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter([self.base + place if self.base else 0 for place in range(len(_NAMES))])


class Network:
    """A world or a recording behind its hosts. Enter `serve`, then let `publish` run."""

    def __init__(
        self,
        source: World | Recording,
        rules: StreamRules | None = None,
        hostility: Hostility | None = None,
    ) -> None:
        self.source = source
        self.hostility = hostility  # None for an honest relay
        self.events = Stream(EventLog(), rules or StreamRules())
        self.labels = Stream(EventLog(), StreamRules(buffer_events=0))
        self.hosts = SimulatedHosts(source, Urls("", "", "", ""), self.events, self.labels)
        self.stopped = False  # nothing more is published
        self._stopping = False
        self._released = trio.Event()
        self._released.set()
        self._label_debt = 0.0
        if isinstance(source, Recording):
            for seq, frame in source.frames:
                self.events.log.append(seq, frame)
            for seq, frame in source.labels:
                self.labels.log.append(seq, frame)
        else:
            for _ in range(LABELS_BEFORE):
                self._append_labels(source)
        self.labels.log.publish()

    def prepare(self, events: int) -> None:
        """Make events ahead, so that publishing them later costs next to nothing."""
        if isinstance(self.source, World):
            for _ in range(events):
                self._append_event(self.source)

    def hold(self) -> None:
        """Have `publish` wait for /simulator/release."""
        self._released = trio.Event()

    async def serve(
        self, ports: Ports, *, task_status: trio.TaskStatus[Urls] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on loopback until cancelled; starts with the URLs. Raises OSError."""
        opened = [await trio.open_tcp_listeners(port, host="127.0.0.1") for port in ports]
        bound = [listeners[0].socket.getsockname()[1] for listeners in opened]
        self.hosts.urls = Urls(*(f"http://127.0.0.1:{port}" for port in bound))
        answers: tuple[Handler, ...] = (
            self._relay, self.hosts.pds, self.hosts.plc, self.hosts.labeler,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            for listeners, handler in zip(opened, answers, strict=True):
                answer = partial(serve_connection, handler=handler)
                await nursery.start(trio.serve_listeners, answer, listeners)
            task_status.started(self.hosts.urls)

    async def publish(self, rate: float, events: int | None = None) -> None:
        """Publish events, `rate` a second (0: as fast as possible), until enough or stopped."""
        await self._released.wait()
        begin, made = trio.current_time(), 0
        while not self._stopping and (events is None or made < events):
            elapsed = trio.current_time() - begin
            due = int(elapsed * rate) + 1 if rate else made + 1_000
            due = due if events is None else min(due, events)
            count = self.advance(due - made)
            made += count
            if made < due and not count:
                break  # the recording has ended
            await trio.sleep(_TICK_SECONDS if made >= due and rate else 0)
        self._finish()

    def advance(self, wanted: int) -> int:
        """Publish up to so many events, for a tick at most but at least one; return how many.

        0 means that a recording has ended, so it must not come of a machine that is busy.
        """
        log = self.events.log
        count = min(wanted, log.appended - log.published)
        if not count and isinstance(self.source, World):
            deadline = trio.current_time() + _TICK_SECONDS
            while count < wanted:
                self._append_event(self.source)
                count += 1
                if trio.current_time() >= deadline:
                    break
        if count:
            log.publish(count)
            self.labels.log.publish()
            if self.events.rules.keep_events:
                log.expire(self.events.rules.keep_events)
        return count

    def stop(self) -> None:
        """Publish nothing more but the rest of the events that were made already."""
        self._stopping = True
        self._released.set()
        self._finish()

    def close(self) -> None:
        """Give the disk space of the streams back."""
        self.events.log.close()
        self.labels.log.close()

    def _finish(self) -> None:
        if isinstance(self.source, World) and not self.stopped:
            while self.source.is_in_the_middle:
                self._append_event(self.source)
            self._end_honestly(self.source)
            self.events.log.publish()
            self.labels.log.publish()
        self.stopped = True

    def _append_event(self, world: World) -> None:
        hostility = self.hostility
        if hostility is None:
            frame = world.step()
            self.events.log.append(world.seq, frame)
        else:
            for fault in OF_ACCOUNTS:
                if hostility.draws(fault):
                    world.rotate_key(hostility.seed, quietly=fault == "rotate_quietly")
            for event in hostility.relay(world.step()):
                self.events.log.append(event.seq, *event.frames)
        self._label_debt += 1 / LABEL_EVERY
        if self._label_debt >= 1:
            self._label_debt -= 1
            self._append_labels(world)

    def _end_honestly(self, world: World) -> None:
        """Let every account be heard of once more, by a relay that has become honest."""
        hostility = self.hostility
        if hostility is None:
            return
        hostility.be_honest()
        world.end()
        while world.is_in_the_middle:
            for event in hostility.relay(world.step()):
                self.events.log.append(event.seq, *event.frames)

    def _append_labels(self, world: World) -> None:
        frame = world.labeler.step()
        self.labels.log.append(world.labeler.seq, frame)

    async def _relay(self, request: Request) -> SimulatedResponse | Upgrade:
        """Answer as the relay, or for those who run the simulation."""
        match request.path:
            case "/simulator/status":
                return json_response(self._status())
            case "/simulator/stop":
                self.stop()
                return json_response(self._status())
            case "/simulator/release":
                self._released.set()
                return json_response(self._status())
            case "/simulator/disconnect":
                return json_response({"disconnected": self.events.subscribers.disconnect_all()})
            case "/simulator/silence":
                self.events.subscribers.fall_silent(float(request.query.get("seconds", "60")))
                return json_response(self._status())
            case "/simulator/faults":
                return self._faults(request)
            case "/simulator/truth":
                return self._truth(request)
        return await self.hosts.relay(request)

    def _faults(self, request: Request) -> SimulatedResponse:
        """Change the rates of faults; answer with the number of faults so far."""
        if self.hostility is None:
            return json_response({"error": "this relay is honest: start it with --fault"}, 404)
        try:
            rates = {name: float(rate) for name, rate in request.query.items()}
            self.hostility.set_rates(rates)
        except ValueError as error:
            return json_response({"error": str(error)}, 400)
        return json_response({name: self.hostility.counts[name] for name in FAULTS})

    def _status(self) -> dict[str, object]:
        return {
            "stopped": self.stopped,
            "published": self.events.log.published,
            "seq": self.events.log.newest_seq,
            "label_frames": self.labels.log.published,
            "label_seq": self.labels.log.newest_seq,
            "subscribers": len(self.events.subscribers),
            "connections": self.events.subscribers.accepted,
            "too_slow": self.events.subscribers.too_slow,
            "repos_served": self.hosts.downloads,
        }

    def _truth(self, request: Request) -> SimulatedResponse:
        if not isinstance(self.source, World):
            return json_response({"error": "a recording brings no truth"}, 404)
        rows = truth(state_of(self.source), handles="handles" in request.query)
        return SimulatedResponse(200, _lines(rows), "application/jsonl")


def _lines(rows: dict[str, dict[tuple[str, ...], tuple[object, ...]]]) -> Iterator[bytes]:
    for name in TABLES:
        flat = [[*key, *row] for key, row in rows[name].items()]
        for start in range(0, len(flat), _ROWS_A_LINE):
            part = {"table": name, "rows": flat[start : start + _ROWS_A_LINE]}
            yield orjson.dumps(part) + b"\n"
