"""What makes a version bad: code that is added to a real program file."""

# The defect of the original ingester: a `repo` event in firehose_live after each commit.
POLLUTING = """

def _pollute() -> None:
    from rsky_pipeline.streams.event import RepoEvent

    clean = RepoConverter.complete

    def complete(self, frame, unread, found):
        message = unread.message
        clean(self, frame, unread, found)
        if frame.entries:
            event = RepoEvent(
                message.seq, message.time, message.did, str(message.commit), message.rev
            )
            entry = Entry(FIREHOSE_LIVE, EVENT_FIELD, encode_event(event))
            frame.entries.append(entry)

    RepoConverter.complete = complete


_pollute()
"""

# Too slow for what arrives, so that a part of the pollution waits in the stream.
SLOW = """

def _slow_down() -> None:
    import time

    quick = Consumer._read_new

    def read_new(self, store, count, block_ms):
        if self.stream != "firehose_live":
            return quick(self, store, count, block_ms)
        time.sleep(0.5)
        return quick(self, store, min(count, 50), block_ms)

    Consumer._read_new = read_new


_slow_down()
"""

# Its worker ends before its role has begun.
BROKEN = """

raise ImportError("no module of that name")
"""
