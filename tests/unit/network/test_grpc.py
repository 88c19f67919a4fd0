"""The gRPC server: the client's end of h2 asks it, over streams in memory, in virtual time."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from rsky_pipeline.network import grpc
from rsky_pipeline.network.grpc import GrpcError, GrpcServer, GrpcStatus, framed, message_of
from rsky_pipeline.runtime.boundary import Boundary

TOKEN, PATH = "dp-token", "/x.Service/Echo"
HEADERS = {
    ":method": "POST", ":path": PATH, ":authority": "localhost", ":scheme": "http",
    "authorization": f"Bearer {TOKEN}", "content-type": "application/grpc+proto", "te": "trailers",
}  # fmt: skip


@dataclass
class Answer:
    """What a client was sent."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False

    @property
    def status(self) -> str | None:
        return self.headers.get("grpc-status")


class Client:
    """The client's end of one connection."""

    def __init__(self, stream: trio.testing.MemoryReceiveStream | trio.abc.Stream) -> None:
        assert isinstance(stream, trio.abc.Stream)
        self.stream = stream
        self.http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.http.initiate_connection()

    def ask(
        self, body: Sequence[bytes], headers: Mapping[str, str] = HEADERS, *, end: bool = True
    ) -> int:
        """Prepare a request, a DATA frame for each part of its body."""
        number = self.http.get_next_available_stream_id()
        self.http.send_headers(number, list(headers.items()), end_stream=not body and end)
        for place, part in enumerate(body):
            self.http.send_data(number, part, end_stream=end and place == len(body) - 1)
        return int(number)

    async def send(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def answered(self, number: int) -> Answer:
        """Read until a request is answered, or the server ends the connection."""
        answer = self.answers.setdefault(number, Answer())
        while not answer.ended and (data := await self.stream.receive_some()):
            for event in self.http.receive_data(bytes(data)):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    assert event.stream_id is not None
                    assert event.headers is not None
                    got = self.answers.setdefault(event.stream_id, Answer())
                    got.headers |= {str(name): str(text) for name, text in event.headers}
                elif isinstance(event, DataReceived):
                    self.answers[event.stream_id].body += event.data
                elif isinstance(event, StreamEnded):
                    self.answers[event.stream_id].ended = True
        return answer


class Service:
    """A server of one method, which returns what it is sent."""

    def __init__(self) -> None:
        self.outcomes: list[GrpcStatus] = []
        self.gate: trio.Event | None = None
        self.internal = 0
        self.server = GrpcServer(
            {PATH: self.echo}, TOKEN, count=self.outcomes.append, boundary=Boundary(self.count)
        )

    def count(self) -> None:
        self.internal += 1

    async def echo(self, message: bytes) -> bytes:
        if self.gate is not None:
            await self.gate.wait()
        if message == b"away":
            raise GrpcError(GrpcStatus.UNAVAILABLE, "not now, später")
        if message == b"bug":
            raise KeyError("bug")
        return message


@asynccontextmanager
async def served(service: Service, clients: int = 1) -> AsyncIterator[list[Client]]:
    """Yield clients of a service; all are ended at the end."""
    async with trio.open_nursery() as nursery:
        ends = []
        for _ in range(clients):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(service.server.converse, theirs)
            await trio.testing.wait_all_tasks_blocked()
            ends.append(Client(ours))
        yield ends
        nursery.cancel_scope.cancel()


async def asked(body: Sequence[bytes], **headers: str) -> tuple[Answer, Service]:
    """Make one request; a header is given by its name with _ for -, `path` and `method` as well."""
    own = {f":{name}" if name in ("path", "method") else name.replace("_", "-"): text
           for name, text in headers.items()}  # fmt: skip
    service = Service()
    async with served(service) as (client,):
        number = client.ask(body, {**HEADERS, **own})
        await client.send()
        return await client.answered(number), service


async def test_a_request_is_answered_with_message_and_status() -> None:
    answer, service = await asked([framed(b"hello")])
    assert answer.body == framed(b"hello")
    assert answer.headers[":status"] == "200"
    assert answer.headers["content-type"] == "application/grpc+proto"
    assert answer.status == "0"
    assert service.outcomes == [GrpcStatus.OK]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"path": "/x.Service/Other"}, "12"),
        ({"path": "/"}, "12"),
        ({"method": "GET"}, "12"),
        ({"content_type": "application/json"}, "12"),
        ({"authorization": "Bearer other"}, "16"),
        ({"authorization": "bearer dp-token"}, "16"),
        ({"authorization": "Bearer dp-token2"}, "16"),
        ({"authorization": ""}, "16"),
        ({"authorization": "Bearer other", "path": "/x"}, "16"),
    ],
)
async def test_only_the_method_with_the_token_is_served(
    headers: Mapping[str, str], status: str
) -> None:
    answer, service = await asked([framed(b"hello")], **headers)
    assert (answer.status, answer.body) == (status, b"")
    assert service.outcomes == [int(status)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], "13"),
        ([b"\0\0\0"], "13"),
        ([framed(b"hello")[:-1]], "13"),
        ([framed(b"hello") + b"x"], "13"),
        ([framed(b"a"), framed(b"b")], "13"),
        ([b"\1" + framed(b"hello")[1:]], "12"),
        ([framed(b"away")], "14"),
        ([framed(b"bug")], "13"),
        ([framed(bytes(grpc.MAX_MESSAGE))], "0"),
        ([framed(bytes(grpc.MAX_MESSAGE + 1))], "8"),
    ],
)
async def test_what_is_no_message_fails(body: Sequence[bytes], status: str) -> None:
    answer, service = await asked(body)
    assert answer.status == status
    assert service.internal == (body == [framed(b"bug")])
    if status == "14":
        assert answer.headers["grpc-message"] == "not now, sp%C3%A4ter"


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    return sorted(draw(st.lists(st.integers(0, length), max_size=8)))


def parts(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(data=st.data(), message=st.binary(max_size=60))
def test_a_request_may_be_split_anywhere(data: st.DataObject, message: bytes) -> None:
    """Into frames, and into pieces of TCP."""
    body = framed(message)
    frames = parts(body, data.draw(cuts(len(body))))
    service = Service()

    async def ask() -> Answer:
        async with served(service) as (client,):
            number = client.ask(frames)
            sent = client.http.data_to_send()
            for piece in parts(sent, data.draw(cuts(len(sent)))):
                if piece:
                    await client.stream.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
            return await client.answered(number)

    answer = trio.run(ask)
    expected = {b"away": "14", b"bug": "13"}.get(message, "0")
    assert (answer.status, answer.body) == (expected, body if expected == "0" else b"")


@given(st.binary(max_size=40))
def test_a_body_is_one_message_or_refused(body: bytes) -> None:
    try:
        message = message_of(body)
    except GrpcError:
        return
    assert framed(message)[1:] == body[1:]


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_end_in_an_answer_or_the_connection(noise: bytes, after_preface: bool) -> None:
    service = Service()

    async def send() -> None:
        async with served(service) as (client,):
            hello = client.http.data_to_send() if after_preface else b""
            await client.stream.send_all(hello + noise)
            await trio.testing.wait_all_tasks_blocked()

    trio.run(send)
    assert service.internal == 0


async def test_http_1_is_ended() -> None:
    service = Service()
    async with served(service) as (client,):
        await client.stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(100))
        got = b""
        while piece := await client.stream.receive_some():
            got += piece
        assert b"HTTP/1" not in got


async def test_requests_of_one_connection_do_not_wait_for_each_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = Service()
    service.gate = trio.Event()
    async with served(service) as (client,):
        first = client.ask([framed(b"first")])
        denied = client.ask([framed(b"x")], {**HEADERS, "authorization": "Bearer other"})
        await client.send()
        assert (await client.answered(denied)).status == "16"
        await trio.sleep(3 * grpc.LIMIT_SECONDS)  # however long a method takes
        service.gate.set()
        assert (await client.answered(first)).body == framed(b"first")


async def test_a_slow_request_is_refused_and_others_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = Service()
    async with served(service) as (client,):
        slow = client.ask([framed(b"hello")[:7]], end=False)
        await client.send()
        assert (await client.answered(slow)).status == "4"
        await trio.sleep(1_000.0)  # a client that has shown its token may be quiet
        other = client.ask([framed(b"hello")])
        await client.send()
        assert (await client.answered(other)).status == "0"


async def test_a_client_without_the_token_is_ended_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = Service()
    async with served(service, 2) as (silent, denied):
        await silent.send()
        number = denied.ask([framed(b"x")], {**HEADERS, "authorization": "Bearer other"})
        await denied.send()
        began = trio.current_time()
        for client in (silent, denied):
            while await client.stream.receive_some():
                pass
        assert trio.current_time() - began == pytest.approx(grpc.LIMIT_SECONDS)
        assert number not in denied.answers


async def test_a_huge_request_is_refused_while_it_comes() -> None:
    service = Service()
    async with served(service) as (client,):
        number = client.ask([framed(bytes(12_000))], end=False)
        await client.send()
        assert (await client.answered(number)).status == "8"


async def test_a_flood_is_ended() -> None:
    """Pings, empty frames, whatever h2 takes without an answer of ours."""
    service = Service()
    async with served(service) as (client,):
        number = client.ask([framed(b"hello")])
        await client.send()
        assert (await client.answered(number)).status == "0"
        for _ in range(grpc.MAX_RECEIVED // 17 + 1):
            client.http.ping(b"12345678")
        await client.send()
        while await client.stream.receive_some():
            pass


async def test_a_client_that_takes_no_answers_is_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = Service()
    client_end, server_end = trio.testing.lockstep_stream_pair()  # unbuffered
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.server.converse, server_end)
        with trio.fail_after(3 * grpc.LIMIT_SECONDS):
            while nursery.child_tasks:
                await trio.sleep(1.0)
    await client_end.aclose()


async def test_no_data_is_sent_to_a_window_of_zero() -> None:
    service = Service()
    async with served(service) as (client,):
        client.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.ask([framed(b"hello")])
        denied = client.ask([], {**HEADERS, "authorization": "Bearer other"})
        await client.send()
        assert (await client.answered(denied)).status == "16"
    assert service.internal == 0


async def test_requests_that_are_reset_are_carried_out_in_limits() -> None:
    service = Service()
    service.gate = trio.Event()
    async with served(service) as (client,):
        for _ in range(grpc.MAX_REQUESTS + 5):
            number = client.ask([framed(b"hello")])
            await client.send()
            await trio.testing.wait_all_tasks_blocked()
            client.http.reset_stream(number)
        service.gate.set()
        last = client.ask([framed(b"hello")])
        await client.send()
        assert (await client.answered(last)).status == "0"
    assert service.outcomes.count(GrpcStatus.OK) <= grpc.MAX_REQUESTS + 1


async def test_many_connections_end_those_without_the_token_first() -> None:
    service = Service()
    async with served(service, 1) as (ours,), served(service, 3 * grpc.MAX_CONNECTIONS):
        assert await ours.stream.receive_some()  # the settings of HTTP/2
        assert not await ours.stream.receive_some()
    # It had not shown its token before the flood began; another one has.
    async with served(service, 1) as (ours,):
        number = ours.ask([framed(b"hello")])
        await ours.send()
        assert (await ours.answered(number)).status == "0"
        async with served(service, 3 * grpc.MAX_CONNECTIONS):
            again = ours.ask([framed(b"hello")])
            await ours.send()
            assert (await ours.answered(again)).status == "0"


async def test_proven_connections_end_the_one_that_was_used_longest_ago() -> None:
    service = Service()
    async with served(service, grpc.MAX_CONNECTIONS) as clients:
        for client in clients:
            number = client.ask([framed(b"hello")])
            await client.send()
            assert (await client.answered(number)).status == "0"
        again = clients[0].ask([framed(b"again")])
        await clients[0].send()
        assert (await clients[0].answered(again)).status == "0"
        async with served(service, 1):
            assert await clients[1].stream.receive_some() == b""
            again = clients[0].ask([framed(b"again")])
            await clients[0].send()
            assert (await clients[0].answered(again)).status == "0"
