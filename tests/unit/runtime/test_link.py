"""A link opens its connection lazily, gives it up after failures, and tries again."""

import logging
import threading
from collections.abc import Callable

import pytest
import trio

from rsky_pipeline.database.errors import (
    BadDataError,
    DatabaseUnavailableError,
    TransactionConflictError,
)
from rsky_pipeline.runtime import link as module
from rsky_pipeline.runtime.boundary import Boundary
from rsky_pipeline.runtime.errors import SettingError, StoreError
from rsky_pipeline.runtime.link import Link
from rsky_pipeline.streams.errors import StoreRejectedError, StoreUnavailableError


class Connection:
    def __init__(self, number: int) -> None:
        self.number = number
        self.thread = threading.get_ident()
        self.closed = False
        self.has_ended = False

    def close(self) -> None:
        self.closed = True


class Server:
    """Counts the connections that were opened; fails with each of `errors` in turn."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.opened: list[Connection] = []
        self.refuses: Exception | None = None

    def open(self) -> Connection:
        if self.refuses is not None:
            raise self.refuses
        self.opened.append(Connection(len(self.opened) + 1))
        return self.opened[-1]

    def act(self, connection: Connection) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return connection.number


def link(server: Server, failed: Callable[[StoreError], object] | None = None) -> Link[Connection]:
    return Link(server.open, purpose="test", failed=failed)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BASE_SECONDS", 0.0)


async def test_it_opens_when_it_is_needed_and_in_the_thread() -> None:
    server = Server()
    one = link(server)
    assert server.opened == []
    assert await one.call(server.act) == 1
    assert await one.call(server.act) == 1
    assert server.opened[0].thread != threading.get_ident()
    one.close()
    one.close()
    assert server.opened[0].closed
    assert await one.call(server.act) == 2


@pytest.mark.parametrize(
    ("error", "connections"),
    [
        (StoreUnavailableError("gone"), 2),
        (StoreRejectedError("refused"), 2),
        (DatabaseUnavailableError("gone"), 2),
        (TransactionConflictError("deadlock"), 1),
        (BadDataError("NUL"), 1),
        (KeyError("a defect"), 2),
    ],
)
async def test_a_call_that_failed_closes_unless_only_its_transaction_did(
    error: Exception, connections: int
) -> None:
    server = Server(error)
    one = link(server)
    with pytest.raises(type(error)):
        await one.call(server.act)
    assert server.opened[0].closed == (connections == 2)
    assert await one.call(server.act) == connections


async def test_retry_goes_on_until_it_succeeds() -> None:
    failures: list[StoreError] = []
    errors = [
        StoreUnavailableError("gone"),
        TransactionConflictError("lock"),
        StoreRejectedError("no"),
    ]
    server = Server(*errors)
    one = link(server, failures.append)
    assert await one.retry(server.act) == 3
    assert failures == errors
    assert not one.in_trouble


async def test_retry_raises_what_cannot_pass() -> None:
    server = Server(BadDataError("NUL"), ValueError("a defect"))
    one = link(server)
    with pytest.raises(BadDataError):
        await one.retry(server.act)
    with pytest.raises(ValueError, match="a defect"):
        await one.retry(server.act)
    assert not one.in_trouble


def test_a_command_insists_without_an_event_loop() -> None:
    server = Server(DatabaseUnavailableError("starting"), StoreUnavailableError("gone"))
    one = link(server)
    assert one.insist(server.act, seconds=60.0) == 3
    assert [each.closed for each in server.opened] == [True, True, False]
    server.errors = [TransactionConflictError("deadlock"), DatabaseUnavailableError("gone")]
    with pytest.raises(TransactionConflictError):
        one.insist(server.act, seconds=60.0)
    with pytest.raises(DatabaseUnavailableError):
        one.insist(server.act, seconds=0.0)


async def test_retry_ends_when_it_is_told_to_after_one_try() -> None:
    stopping = trio.Event()
    stopping.set()
    server = Server()
    assert await link(server).retry(server.act, until=stopping) == 1
    server.errors = [StoreUnavailableError("gone")] * 2
    one = link(server)
    assert await one.retry(server.act, until=stopping) is None
    assert len(server.errors) == 1
    assert one.in_trouble


async def test_a_server_that_refuses_connections_is_tried_again() -> None:
    server = Server()
    server.refuses = StoreUnavailableError("connection refused")
    one = link(server, lambda _: setattr(server, "refuses", None))
    assert await one.retry(server.act) == 1


async def test_attempt_leaves_the_next_try_to_the_caller() -> None:
    server = Server(StoreUnavailableError("gone"), BadDataError("NUL"))
    one = link(server)
    assert await one.attempt(server.act) is None
    assert one.in_trouble
    with pytest.raises(BadDataError):
        await one.attempt(server.act)
    assert await one.attempt(server.act) == 2


async def test_one_line_tells_of_many_failures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = Server(*[StoreUnavailableError("gone")] * 5)
    await link(server).retry(server.act)
    (record,) = [item for item in caplog.records if item.name == "rsky_pipeline.runtime.link"]
    assert record.getMessage() == "store failed"
    assert (vars(record)["purpose"], vars(record)["error"]) == ("test", "gone")
    assert record.exc_info is None


async def test_calls_wait_for_each_other_and_cancelled_ones_end() -> None:
    running = threading.Semaphore(1)
    one, ended = link(Server()), []

    def work(_: Connection) -> None:
        assert running.acquire(blocking=False), "two calls at once"
        threading.Event().wait(0.02)
        running.release()
        ended.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one.call, work)
    with trio.move_on_after(0.001):
        await one.call(work)
    assert len(ended) == 4


async def test_an_unexpected_reply_does_not_end_periodic_work() -> None:
    caught: list[int] = []
    server = Server()
    one = Link(server.open, purpose="test", boundary=Boundary(lambda: caught.append(1)))

    def misread(_: object) -> int:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    assert await one.attempt(misread) is None
    assert caught == [1]
    assert [each.closed for each in server.opened] == [True]  # a part of a reply may be unread
    assert await one.attempt(server.act) == 2
    with pytest.raises(UnicodeDecodeError):  # who cannot go on without the answer is told
        await one.call(misread)
    with pytest.raises(SettingError):
        await one.attempt(_refuse)


def _refuse(_: object) -> None:
    raise SettingError("another database")


async def test_one_failure_is_no_trouble_and_two_in_a_row_are() -> None:
    server = Server(*(StoreUnavailableError("away", "redis_loading") for _ in range(3)))
    one = link(server)
    assert one.trouble(0.0) is None
    with pytest.raises(StoreUnavailableError):
        await one.call(server.act)
    now = one._until
    assert one.trouble(now) is None
    with pytest.raises(StoreUnavailableError):
        await one.call(server.act)
    found = one.trouble(now + 5.0)
    assert found is not None
    assert (found.purpose, found.error.finding, found.seconds >= 5.0) == (
        "test", "redis_loading", True
    )  # fmt: skip
    assert found.error in [each.error for each in module.store_troubles()]
    # A link that nobody uses any more is in no trouble for ever.
    assert one.trouble(one._until + module.FORGOTTEN_SECONDS + 1) is None
    await one.retry(server.act)
    assert one.trouble(now + 5.0) is None


async def test_a_call_that_does_not_return_after_a_failure_is_trouble() -> None:
    server = Server(StoreUnavailableError("away"))
    one, hung, go_on = link(server), threading.Event(), threading.Event()

    def hang(_: Connection) -> None:
        hung.set()
        go_on.wait()

    with pytest.raises(StoreUnavailableError):
        await one.call(server.act)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.call, hang)
        while not hung.is_set():
            await trio.sleep(0.001)
        assert one.trouble(one._until + 1_000) is not None
        go_on.set()
    assert one.trouble(one._until) is None


async def test_work_that_is_refused_is_no_trouble_of_the_store() -> None:
    server = Server(BadDataError("bad"), BadDataError("bad"))
    one = link(server)
    for _ in range(2):
        with pytest.raises(BadDataError):
            await one.call(server.act)
    assert one.trouble(0.0) is None


async def test_a_connection_that_ended_while_idle_is_no_failure() -> None:
    failures: list[StoreError] = []
    server = Server()
    one = link(server, failures.append)
    assert await one.call(server.act) == 1
    server.opened[0].has_ended = True
    assert await one.call(server.act) == 2
    assert [each.closed for each in server.opened] == [True, False]
    assert failures == []
    assert not one.in_trouble
