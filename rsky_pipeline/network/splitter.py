"""Cutting what a WebSocket server sends into messages. Pure.

Nearly all of it are binary messages of one frame each, which are taken out here. Every other byte
is left to a library: the handshake, control frames, fragments, texts, what is too big, and what
breaks the rules.
Source: https://www.rfc-editor.org/rfc/rfc6455#section-5.2.
"""

_HEAD_END = b"\r\n\r\n"
_WHOLE_BINARY = 0x82
_FINAL, _OPCODE, _MASKED, _LENGTH = 0x80, 0x0F, 0x80, 0x7F
_CONTINUATION, _CLOSE = 0x0, 0x8


class Splitter:
    """Splits one connection's bytes, from the answer to the handshake on.

    `largest` is the size of the largest message that is taken out, in bytes.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._buffer = bytearray()
        self._in_head = True
        self._in_fragments = False
        self._left_over = 0  # bytes of a frame that is left to the library

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes that have come."""
        self._buffer += data

    def take(self) -> tuple[list[bytes], bytes]:
        """Return messages, and what is left to the library behind them.

        What comes behind that is returned by the next call, so that order is kept. Both are empty
        when nothing can be done before more has come.
        """
        if self._in_head:
            return [], self._take_head()
        messages: list[bytes] = []
        others: list[bytes] = []
        at = 0
        with memoryview(self._buffer) as view:
            while True:
                if self._left_over:
                    part = bytes(view[at : at + self._left_over])
                    others.append(part)
                    at += len(part)
                    self._left_over -= len(part)
                    if self._left_over:
                        break
                header = _read_header(view, at)
                if header is None:
                    break
                start, end = header
                if self._is_usual(view, at, end - start):
                    if others or end > len(view):
                        break
                    messages.append(bytes(view[start:end]))
                    at = end
                else:
                    self._note_fragment(view[at])
                    self._left_over = end - at
        del self._buffer[:at]
        return messages, b"".join(others)

    def _take_head(self) -> bytes:
        """Return what belongs to the answer to the handshake, as far as it has come."""
        found = self._buffer.find(_HEAD_END)
        # Of an end that has come in part nothing is given away, so that it is found.
        size = found + len(_HEAD_END) if found >= 0 else len(self._buffer) - len(_HEAD_END) + 1
        self._in_head = found < 0
        head = bytes(self._buffer[: max(size, 0)])
        del self._buffer[: len(head)]
        return head

    def _is_usual(self, view: memoryview, at: int, size: int) -> bool:
        return (
            view[at] == _WHOLE_BINARY
            and not view[at + 1] & _MASKED
            and not self._in_fragments
            and size <= self._largest
            and (view[at + 1] < 126 or size > (125 if view[at + 1] == 126 else 0xFFFF))
        )

    def _note_fragment(self, first: int) -> None:
        opcode = first & _OPCODE
        if opcode < _CLOSE and not first & _FINAL:
            self._in_fragments = True
        elif opcode == _CONTINUATION:
            self._in_fragments = False


def _read_header(view: memoryview, at: int) -> tuple[int, int] | None:
    """Return where the payload of a frame begins and ends; None if its header is not all there."""
    if len(view) < at + 2:
        return None
    start = at + 2
    size = view[at + 1] & _LENGTH
    if size > 125:
        width = 2 if size == 126 else 8
        if len(view) < start + width:
            return None
        size = int.from_bytes(view[start : start + width], "big")
        start += width
    if view[at + 1] & _MASKED:
        start += 4
    return start, start + size
