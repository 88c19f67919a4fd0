"""Whether an append-only file will be read again: asked of a Redis of which only answers are known.

Servers from 7.0 on run the transactions of the file as the user `default`, and drop those that it
may not run; Valkey does not from 9.1.2 on, so that no server of the tests shows it.
"""

import pytest

from rsky_pipeline.streams.errors import StoreRejectedError
from rsky_pipeline.streams.server import check_server

REFUSED = b"User default has no permissions to run the 'set' command"
KEYS = b"User default has no permissions to access the 'x' key"
DENIED = StoreRejectedError("NOPERM this user has no permissions to run the 'acl|dryrun' command")
UNKNOWN = StoreRejectedError("ERR Unknown subcommand or wrong number of arguments for 'DRYRUN'")


class Server:
    on_cluster = False

    def __init__(self, information: str, answer: bytes | StoreRejectedError) -> None:
        self._information, self._answer = information, answer

    def call(self, *words: object) -> object:
        if words == ("INFO",):
            return "\r\n".join(self._information.split()).encode()
        assert words[:3] == ("ACL", "DRYRUN", "default")
        if isinstance(self._answer, StoreRejectedError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("information", "user", "answer", "found"),
    [
        ("redis_version:7.0.15 aof_enabled:1", "rsky", b"OK", []),
        ("redis_version:7.0.15 aof_enabled:1", "rsky", REFUSED, ["error"]),
        ("redis_version:7.0.15 aof_enabled:1", "rsky", KEYS, ["error"]),
        ("redis_version:8.0.2 aof_enabled:1", None, REFUSED, ["error"]),
        ("redis_version:7.2.4 valkey_version:8.1.0 aof_enabled:1", "rsky", REFUSED, ["error"]),
        ("redis_version:7.2.4 valkey_version:9.1.2 aof_enabled:1", "rsky", REFUSED, []),
        # It could be asked if the account might: then somebody has to look.
        ("redis_version:7.0.15 aof_enabled:1", "rsky", DENIED, ["advice"]),
        ("redis_version:7.0.15 aof_enabled:1", None, DENIED, []),  # we are that user, and write
        ("redis_version:7.0.15 aof_enabled:1", "default", DENIED, []),
        ("redis_version:6.2.7 aof_enabled:1", "rsky", UNKNOWN, []),  # it runs them as nobody
        ("redis_version:7.0.15", "rsky", DENIED, []),  # a managed service, which does not tell
    ],
)
def test_an_append_only_file_that_would_not_be_read_is_an_error(
    information: str, user: str | None, answer: bytes | StoreRejectedError, found: list[str]
) -> None:
    settings = check_server(Server(information, answer), user)  # type: ignore[arg-type]
    assert [each.severity for each in settings] == found
    assert all(each.name == "the user default" for each in settings)


def test_a_cluster_behind_a_proxy_that_does_not_greet_is_unusable() -> None:
    [found] = check_server(Server("redis_version:7.2.4 cluster_enabled:1", b"OK"), None)  # type: ignore[arg-type]
    assert (found.severity, found.name) == ("unusable", "cluster mode")
