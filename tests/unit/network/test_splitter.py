"""Cutting a server's bytes into messages, held against the library that does all of it."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from rsky_pipeline.network.frame_socket import Splitter

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
LARGEST = 300
Event = tuple[str, bytes]


def frame(first: int, payload: bytes, *, width: int = 0, mask: bytes = b"") -> bytes:
    """Return a frame; `width` is that of its length where it is not the shortest."""
    masked = 0x80 if mask else 0
    size = len(payload)
    width = width or (0 if size < 126 else 2 if size < 65_536 else 8)
    if width:
        length = bytes([masked | (126 if width == 2 else 127)]) + size.to_bytes(width, "big")
    else:
        length = bytes([masked | size])
    return bytes([first]) + length + mask + payload


class Library:
    """What the library makes of a connection's bytes: whole messages, and pings."""

    def __init__(self) -> None:
        self.found: list[Event] = []
        self.goes_on = True
        self._connection = Connection(ConnectionType.CLIENT)
        self._parts: list[bytes] = []

    def read(self, data: bytes) -> None:
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case BytesMessage():
                    self._parts.append(bytes(event.data))
                    if event.message_finished:
                        self.found.append(("binary", b"".join(self._parts)))
                        self._parts = []
                case TextMessage():
                    self._parts.append(event.data.encode())
                    if event.message_finished:
                        self.found.append(("text", b"".join(self._parts)))
                        self._parts = []
                case Ping():
                    self.found.append(("ping", bytes(event.payload)))
                case CloseConnection():
                    self.goes_on = False
                    return


def read_by_both(chunks: list[bytes]) -> list[Event]:
    """Return what comes of the bytes after the handshake: of the splitter, else of the library."""
    splitter, library = Splitter(LARGEST), Library()
    splitter.feed(HEAD)
    assert splitter.take() == ([], HEAD)
    for chunk in chunks:
        splitter.feed(chunk)
        taken = splitter.take()
        while any(taken) and library.goes_on:
            library.found += [("binary", message) for message in taken[0]]
            if taken[1]:
                library.read(taken[1])
            taken = splitter.take()
    return library.found


usual = st.binary(max_size=400).map(lambda payload: frame(0x82, payload))
unusual = st.one_of(
    st.builds(frame, st.sampled_from([0x89, 0x8A, 0x81]), st.just(b"abc")),
    st.just(frame(0x02, b"1") + frame(0x89, b"") + frame(0x00, b"2") + frame(0x80, b"3")),
    st.builds(frame, st.sampled_from([0x02, 0x00, 0x80, 0x82, 0xC2, 0x83]), st.binary(max_size=9)),
    st.builds(frame, st.just(0x82), st.binary(max_size=9), width=st.sampled_from([2, 8])),
    st.builds(frame, st.just(0x82), st.binary(max_size=9), mask=st.just(b"mask")),
    st.just(b"\x82\x7f" + b"\xff" * 8),
)


@given(st.lists(usual | unusual, max_size=12), st.data())
@settings(max_examples=1_000)
def test_nothing_is_read_otherwise_than_by_the_library(
    frames: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    ends = sorted({0, len(stream), *cuts})
    chunks = [stream[start:end] for start, end in pairwise(ends)]
    library = Library()
    library.read(stream)
    assert read_by_both(chunks) == library.found


@pytest.mark.parametrize("size", [0, 125, 126, 300])
def test_a_message_of_one_frame_is_taken_out(size: int) -> None:
    splitter = Splitter(LARGEST)
    splitter.feed(HEAD + frame(0x82, b"x" * size) + frame(0x89, b"") + frame(0x82, b"y"))
    assert splitter.take() == ([], HEAD)
    assert splitter.take() == ([b"x" * size], frame(0x89, b""))
    assert splitter.take() == ([b"y"], b"")
    assert splitter.take() == ([], b"")


def test_what_is_too_big_is_left_to_the_library_as_it_comes() -> None:
    splitter = Splitter(LARGEST)
    big = frame(0x82, b"x" * 301)
    splitter.feed(HEAD + big[:200])
    assert splitter.take() == ([], HEAD)
    assert splitter.take() == ([], big[:200])
    splitter.feed(big[200:] + frame(0x82, b"y"))
    assert splitter.take() == ([], big[200:])
    assert splitter.take() == ([b"y"], b"")


def test_the_handshake_ends_wherever_it_is_cut() -> None:
    stream = HEAD + frame(0x82, b"message")
    for cut in range(len(stream)):
        splitter = Splitter(LARGEST)
        head, messages = b"", []
        for chunk in (stream[:cut], stream[cut:]):
            splitter.feed(chunk)
            for _ in range(2):
                taken, rest = splitter.take()
                messages += taken
                head += rest
        assert (head, messages) == (HEAD, [b"message"])
