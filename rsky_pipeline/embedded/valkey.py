"""An embedded Valkey: unix socket only, append-only persistence, never evicts."""

import signal
import socket
from functools import partial
from pathlib import Path

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.embedded import locations
from rsky_pipeline.embedded.program import StoreProgram

# appendfsync everysec: a reply is sent after write(), so acknowledged writes survive a crash of the
# server. A power failure may lose the last second; the ingester detects that by the cursor, which
# is lower than expected, and reads those events again.
OPTIONS: tuple[str, ...] = (
    *("--port", "0"),
    *("--unixsocketperm", "700"),
    *("--daemonize", "no"),
    *("--appendonly", "yes"),
    *("--appendfsync", "everysec"),
    *("--auto-aof-rewrite-min-size", "256mb"),
    *("--save", ""),
    *("--maxmemory-policy", "noeviction"),
    *("--loglevel", "notice"),
)


def prepare(settings: Settings, options: tuple[str, ...] = ()) -> StoreProgram:
    """Create the directories of the embedded Valkey; returns the program to start.

    `options` are further arguments of the server. Raises EmbeddedStoreError.
    """
    program = locations.valkey_program()
    data = locations.data_directory(settings)
    directory = data / "valkey"
    locations.make_private(directory)
    path = locations.valkey_socket(data)
    locations.make_private(path.parent)
    url = locations.store_urls(settings).redis_url
    return StoreProgram(
        name="valkey",
        arguments=(
            str(program),
            *("--dir", str(directory)),
            *("--unixsocket", str(path)),
            *OPTIONS,
            *options,
        ),
        url=url or "",
        directory=directory,
        log_path=directory / "server.log",
        stop_signal=signal.SIGTERM,
        answers=partial(answers, path),
    )


def answers(path: Path, timeout_seconds: float = 2.0) -> bool:
    """Return whether the server on this socket takes commands: its data is loaded."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
