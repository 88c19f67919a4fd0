"""Connections to Redis or Valkey, without redis-py's retries, which would append twice."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from rsky_pipeline.configuration.store_urls import RedisAddress, RedisLogin, parse_redis_url
from rsky_pipeline.runtime.errors import described, printable
from rsky_pipeline.streams.commands import (
    NAME_OF_KEY,
    TAG,
    WITH_SUBCOMMANDS,
    Argument,
    owner,
    tagged,
    with_tag,
    without_tag,
)
from rsky_pipeline.streams.errors import (
    LoginRejectedError,
    StoreRejectedError,
    StoreUnavailableError,
    WritesRefusedError,
)

_MAX_KEYS_NAMED = 5
_MAX_NAME = 100  # characters of a key in a message
# Rows of a rule of health, and the exceptions and messages that violate it.
_Findings = tuple[tuple[str, tuple[type[Exception], ...], re.Pattern[str]], ...]

_UNAVAILABLE = (redis.ConnectionError, redis.TimeoutError, OSError)
_CREDENTIALS = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
# Errors caused by the state of the server, not by the command: it became a replica (fail-over
# behind one address), is loading, lacks replicas, disk or memory, or the key moved to another node.
# A pause helps, or a new connection, which may reach another server; redis-py keeps the old one.
# redis-py strips the code in some of its exceptions, and Redis 6.2 prefixes the code of a command
# within a script by a text of its own. The rule of health is that of `health/rules.py`.
_REFUSED_WRITES: _Findings = (
    ("redis_full", (redis.exceptions.OutOfMemoryError,), re.compile(r"OOM command")),
    ("redis_cannot_save", (), re.compile(r"(?:^|-)MISCONF ")),
    ("redis_no_replicas", (), re.compile(r"(?:^|-)NOREPLICAS ")),
)
_WRONG_SERVER: _Findings = (
    ("redis_loading", (redis.exceptions.BusyLoadingError,), re.compile(r"(?:^|-)LOADING ")),
    (
        "redis_read_only",
        (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError),
        re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN) |UNBLOCKED.* instance state changed"),
    ),
    ("redis_busy", (), re.compile(r"(?:^|-)BUSY ")),
)
_DENIED: _Findings = (
    ("redis_denied", (redis.exceptions.NoPermissionError,), re.compile(r"(?:^|-)NOPERM ")),
)
# The keys are on their way to another node, or nobody holds them: a new connection finds them.
_MOVING = (
    redis.exceptions.MovedError,
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
_MOVING_CODES = re.compile(r"(?:^|-)(?:CLUSTERDOWN|MOVED|ASK|TRYAGAIN) |non local key in a cluster")
_NO_DATABASES = "not allowed in cluster mode"
# Only a cluster says so, of keys without a tag: it was not recognised.
_CROSS_SLOT = re.compile(r"(?:^|-)CROSSSLOT |hash to the same slot")
_HISTORY = re.compile(rb"^master_replid:([0-9a-f]+)", re.MULTILINE)


# No retries: redis-py would repeat a command whose reply was lost, and append entries twice.
_FIXED: dict[str, Any] = {
    "protocol": 2,
    "socket_connect_timeout": 5.0,
    "retry": Retry(NoBackoff(), 0),
    "health_check_interval": 0,
    "decode_responses": False,
}
_ASK_SECONDS = 2.0  # for one sentinel
_HOPS = 5  # from node to node of a cluster


class Store:
    """One connection, for one thread at a time. Calls raise only this package's errors.

    After StoreUnavailableError it must be closed (`runtime.link` does): redis-py would keep the
    connection to a server that only answers READONLY since it became a replica.
    """

    def __init__(
        self,
        client: redis.Redis,
        timeout_seconds: float,
        sentinels: "_Sentinels | None" = None,
        servers: "_Servers | None" = None,
    ) -> None:
        self._client = client
        self._sentinels = sentinels
        self._servers = servers  # until it is known which of them has the keys
        self.on_cluster = False
        self._digests: dict[str, bytes] = {}
        self.timeout_seconds = timeout_seconds
        # Of `append`: the time, or the number of bytes left, until the next INFO memory.
        self.memory_check_at, self.memory_left = 0.0, 0.0

    def call(self, *command: Argument) -> Any:
        """Send one command and return its reply, in bytes. Raises the errors of this package."""
        with translated_errors(command):
            self._open()
            if self.on_cluster:
                return without_tag(command, self._send(*with_tag(command)))
            return self._send(*command)

    def script(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run `NAME.lua` of this package on the server (EVALSHA), loading it if necessary."""
        with translated_errors((name, *keys)):
            self._open()
            rest = [len(keys), *(tagged(keys) if self.on_cluster else keys), *arguments]
            digest = self._digests.get(name) or self._load(name)
            try:
                return self._send("EVALSHA", digest, *rest)
            except redis.exceptions.NoScriptError:  # the server restarted; nothing has run
                return self._send("EVALSHA", self._load(name), *rest)

    def history(self) -> str:
        """Return the ID of the server's history of writes (its replication ID); "" if it is hidden.

        A promoted replica begins another history, as does a restart. What was acknowledged in the
        one before may be lost: replication is asynchronous, and the newest writes may be missing.
        So whoever acknowledges one write because of an earlier one compares the histories of both.
        """
        try:
            found = _HISTORY.search(self.call("INFO", "replication"))
        except StoreRejectedError:  # by an ACL
            return ""
        return found[1].decode() if found else ""

    def address(self) -> tuple[str, int]:
        """Return host and port of the server that has the keys now.

        Raises the errors of this package.
        """
        with translated_errors():
            self._open()
            if self._sentinels is not None:
                return self._sentinels.discover_master(self._sentinels.name)
            options = self._client.get_connection_kwargs()
            return str(options["host"]), int(options["port"])

    def ping(self) -> None:
        """Check that the server answers."""
        self.call("PING")

    @property
    def has_ended(self) -> bool:
        """False: redis-py itself replaces an idle connection that the server has closed."""
        return False

    def close(self) -> None:
        """Close the connection, and those to sentinels. Never raises."""
        for client in (self._client, *(self._sentinels.clients if self._sentinels else ())):
            with suppress(redis.RedisError, OSError):
                client.close()

    def _open(self) -> None:
        """Find out, once, which server has the keys, and whether it is a cluster's."""
        if self._servers is not None:
            self._client, self.on_cluster = self._servers.find()
            self._servers = None

    def _load(self, name: str) -> bytes:
        text = (files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
        flags, _, body = text.partition("\n")
        body = f"{NAME_OF_KEY}\n{body}"
        try:
            digest: bytes = self._send("SCRIPT", "LOAD", f"{flags}\n{body}")
        except redis.ResponseError as error:
            if "near '#'" not in str(error):
                raise
            # Redis 6.2 rejects the line with script flags; its defaults are the same.
            digest = self._send("SCRIPT", "LOAD", body)
        self._digests[name] = digest
        return digest

    def _send(self, *command: Argument) -> Any:
        return _send(self._client, *command)


def _send(client: redis.Redis, *command: Argument) -> Any:
    """Return the reply to a command; raises RedisError, OSError and MemoryError alone.

    A defect of the library must not end the worker again and again.
    """
    try:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]
    except (redis.RedisError, OSError, MemoryError):
        raise
    except Exception as error:
        raise redis.ConnectionError(f"the client failed: {described(error)}") from error


class _Servers:
    """The servers of a URL: one, several of which one is the primary, or nodes of a cluster."""

    def __init__(self, address: RedisAddress, options: Mapping[str, Any]) -> None:
        self._hosts = address.hosts
        self._options = dict(options)

    def find(self) -> tuple[redis.Redis, bool]:
        """Return a client of the server that has the keys, and whether that is a cluster's node.

        Raises ConnectionError with the answer of each, and what the server raises.
        """
        if len(self._hosts) == 1:
            return self._look_at(*self._hosts[0])
        answers = []
        for host, port in self._hosts:
            try:
                return self._look_at(host, port)
            except _UNAVAILABLE as error:
                answers.append(f"{host}:{port}: {error}")
        raise redis.ConnectionError(f"none of the servers has the keys: {'; '.join(answers)}")

    def _look_at(self, host: str, port: int) -> tuple[redis.Redis, bool]:
        client = self._client(host, port)
        try:
            facts = _greeted(client)
            if facts.get("mode") == "cluster":
                return self._owner(client, (host, port)), True
            if len(self._hosts) > 1 and facts.get("role") not in (None, "master"):
                raise redis.ConnectionError("it is a replica")
        except BaseException:
            client.close()
            raise
        return client, False

    def _owner(self, asked: redis.Redis, place: tuple[str, int]) -> redis.Redis:
        """Return a client of the primary that holds the keys, as nodes of the cluster name it.

        A node that was away may name one of before, which names its successor.
        """
        with closing(asked):
            found = owner(_send(asked, "CLUSTER", "SLOTS"), place)
        for _ in range(_HOPS):
            if found is None:
                break
            client = self._client(*found)
            try:
                _send(client, "EXISTS", TAG)
                return client
            except redis.exceptions.MovedError as error:
                client.close()
                found = str(error.host or found[0]), int(error.port)
            except BaseException:
                client.close()
                raise
        raise redis.exceptions.ClusterDownError("no node of the cluster holds the keys")

    def _client(self, host: str, port: int) -> redis.Redis:
        client = redis.Redis(host=host, port=port, **self._options)
        # Raw replies: redis-py's parsed forms differ between its versions.
        client.response_callbacks.clear()
        return client


def _greeted(client: redis.Redis) -> dict[str, str]:
    """Return the facts that a server greets with; none where it does not, as proxies do not."""
    try:
        reply = _send(client, "HELLO")
    except redis.exceptions.BusyLoadingError:
        raise
    except redis.ResponseError:
        return {}
    pairs = zip(*[iter(reply)] * 2, strict=True)
    return {text_of(name): text_of(each) for name, each in pairs if isinstance(each, bytes)}


class _Sentinels:
    """Asks sentinels for the primary, as redis-py's pool demands it each time it connects."""

    def __init__(self, address: RedisAddress) -> None:
        self.name = address.primary_name or ""
        self.clients = []
        for host, port in address.hosts:
            options = {**_FIXED, **_login(address.sentinel_login)}
            options |= dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _ASK_SECONDS)
            client = redis.Redis(host=host, port=port, **options)
            client.response_callbacks.clear()
            self.clients.append(client)

    def discover_master(self, name: str) -> tuple[str, int]:
        """Return the address of the primary; raises ConnectionError with the answer of each."""
        answers = []
        for client in self.clients:
            place = client.connection_pool.connection_kwargs
            try:
                reply = client.execute_command("SENTINEL", "MASTER", name)  # type: ignore[no-untyped-call]
                facts = {bytes(k): text_of(v) for k, v in zip(*[iter(reply)] * 2, strict=True)}
                if not {"s_down", "o_down"} & set(facts[b"flags"].split(",")):
                    return facts[b"ip"], int(facts[b"port"])
                answer = "it is down"
            except (redis.RedisError, OSError) as error:
                answer = str(error)
            answers.append(f"{place['host']}:{place['port']}: {answer}")
        raise redis.ConnectionError(f"no sentinel has a primary {name}: {'; '.join(answers)}")


def text_of(reply: bytes) -> str:
    r"""Return a name or text that Redis holds; bytes that are no UTF-8 as \xNN.

    Other programs use the server too, and may name groups, consumers and fields as they like.
    """
    return reply.decode("utf-8", "backslashreplace")


@contextmanager
def translated_errors(command: Sequence[Argument] = ()) -> Iterator[None]:
    """Translate redis-py's errors into this package's.

    `command` is the command, or the name of a script and its keys: the server names no key.
    """
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise _translated(error, command) from error


def _translated(error: Exception, command: Sequence[Argument]) -> Exception:
    text = str(error)
    if isinstance(error, _CREDENTIALS):
        return LoginRejectedError(
            f"Redis rejects the user or password of redis_url: {text}; characters that mean "
            "something in a URL are percent-encoded there"
        )
    if finding := _finding(_WRONG_SERVER, error, text):
        return StoreUnavailableError(f"Redis cannot serve now: {text}", finding)
    if isinstance(error, _MOVING) or _MOVING_CODES.search(text):
        return StoreUnavailableError(f"the cluster moves the keys, or nobody holds them: {text}")
    if isinstance(error, redis.exceptions.ClusterCrossSlotError) or _CROSS_SLOT.search(text):
        return StoreUnavailableError(
            f"Redis is a cluster behind a proxy that hides it: name its nodes in redis_url ({text})"
        )
    if _NO_DATABASES in text:
        return StoreRejectedError(
            f"this cluster has database 0 alone: end redis_url with /0 ({text})"
        )
    if isinstance(error, _UNAVAILABLE):
        # Others go on behind the text.
        return StoreUnavailableError(f"Redis cannot be reached: {text.rstrip('.')}")
    if isinstance(error, redis.DataError):
        return ValueError(f"value cannot be sent to Redis: {text}")
    finding = _finding(_REFUSED_WRITES, error, text)
    if finding == "redis_full":
        return WritesRefusedError(
            "Redis refuses writes because its memory is full: raise maxmemory, or lower the "
            "high-water marks below what fits into it",
            finding,
        )
    if finding:
        return WritesRefusedError(f"Redis refuses writes: {text}", finding)
    return StoreRejectedError(
        f"Redis refused{_named(command)}: {text}{_hint(text)}", _finding(_DENIED, error, text)
    )


def _finding(table: _Findings, error: Exception, text: str) -> str:
    """Return the rule of health that an error violates, empty if it is not in the table."""
    found = (name for name, kinds, code in table if isinstance(error, kinds) or code.search(text))
    return next(found, "")


def _named(command: Sequence[Argument]) -> str:
    """Return a command and its key, or a script and its first keys, for a message."""
    if not command:
        return ""
    name, *rest = command
    if str(name).startswith("XREAD"):  # the keys come last
        rest = rest[-2:-1]
    elif str(name).isupper():
        rest = rest[: 2 if name in WITH_SUBCOMMANDS else 1]
    words = [text_of(word) if isinstance(word, bytes) else str(word) for word in (name, *rest)]
    shown = " ".join(word[:_MAX_NAME] for word in words[: 1 + _MAX_KEYS_NAMED])
    return f" {printable(shown)}" + (" ..." if len(words) > 1 + _MAX_KEYS_NAMED else "")


def _hint(text: str) -> str:
    """Return what to do, where the server's message alone does not say it."""
    if "WRONGTYPE" not in text:
        return ""
    return "; another program uses the key: rename its key, or give each its own Redis database"


def connect(url: str, *, name: str, timeout_seconds: float = 10.0) -> Store:
    """Return a store that connects when it is first used.

    `timeout_seconds` bounds the wait for every reply, so a blocking read must block for less.
    Where the URL names sentinels, they are asked for the present primary at each connection, so
    whoever opens another store after a failure follows a fail-over. Raises ValueError for a
    malformed URL, LoginRejectedError for TLS files that cannot be read.
    """
    address = parse_redis_url(url)
    for login in (address.login, address.sentinel_login):
        _check_files(login)
    common = {
        "db": address.database,
        "client_name": name,
        "socket_timeout": timeout_seconds,
        "max_connections": 2,
        **_FIXED,
        **_login(address.login),
    }
    sentinels: _Sentinels | None = None
    servers: _Servers | None = None
    if address.primary_name is not None:
        sentinels = _Sentinels(address)
        client = redis.Redis.from_pool(
            SentinelConnectionPool(address.primary_name, sentinels, **common)  # type: ignore[no-untyped-call]
        )
    elif address.socket is not None:
        client = redis.Redis(unix_socket_path=address.socket, **common)
    else:
        servers = _Servers(address, common)
        client = redis.Redis(**common)
    # Raw replies: redis-py's parsed forms differ between its versions.
    client.response_callbacks.clear()
    return Store(client, timeout_seconds, sentinels, servers)


def _check_files(login: RedisLogin) -> None:
    """Raise LoginRejectedError with the path of a TLS file that cannot be read.

    Time does not cure that, as it does a server that is away. The library's own error has no path.
    """
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = (login.tls or {}).get(option)
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            text = f"{option} of redis_url: {path}: {error.strerror}"
            raise LoginRejectedError(f"Redis cannot be reached: {text}") from error


def _login(login: RedisLogin) -> dict[str, Any]:
    found: dict[str, Any] = {"username": login.username, "password": login.password}
    return found if login.tls is None else {**found, "ssl": True, **login.tls}
