"""The URLs of the stores, and their options.

Each option is sorted: the server's or the operator's (accepted), ours (refused by name, since the
pipeline depends on its value), or another client's (refused with the way to say it here). A message
never repeats the URL, which may hold a password.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from rsky_pipeline.configuration.endpoints import port_or_host

REDIS_PORT, SENTINEL_PORT = 6379, 26379
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_POSTGRES_SCHEMES = ("postgresql", "postgres")
# A slash, ? or # in a user name or password is written as %2F, %3F or %23. (urlsplit of newer
# Pythons refuses some lists of hosts.)
_URL = re.compile(
    r"(?P<scheme>[a-z+-]+)://(?P<place>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?"
)
# A / or ? in a password ends the place, and its rest with the @ is read as another part. The value
# of an option may have an @, but then the place has no port that is none.
_REST_OF_PASSWORD = re.compile(
    r"[a-z+-]+://(?:[^@/?#]+(?:/[^@?]*@|\?[^@=]*@|[^@]*#[^@]*@)"
    r"|[^@/?#\[]*:[^@/?#,]*[^0-9@/?#,][^@/?#,]*[/?#][^@]*@)"
)
_NOT_FOR_LIBPQ = re.compile(r"%(?![0-9A-Fa-f]{2})|\s|@.*@")
_NOT_ENCODED = (
    "a character of its user or password is not percent-encoded: / is written as %2F, ? as %3F, "
    "# as %23, @ as %40, % as %25, a blank as %20"
)
_PRIMARY_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_SEARCH_PATH = re.compile(r"search_path\s*=\s*\"?([^\s,\"]+)")
_GIVEN_SETTING = re.compile(r"(?:^|\s)(?:-c\s*|--)([A-Za-z_.]+)\s*=")
_YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_OURS = "rsky-pipeline sets it itself: remove it"
_NOT_NEEDED = "it is not needed here: remove it"
_TLS = "use rediss:// instead of redis://"
_LOGIN = "write it before the host: redis://user:password@host"

# Of redis-py; its names are kept, because URLs that operators have use them.
_REDIS_TLS = frozenset({
    "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname",
    "ssl_keyfile", "ssl_password",
})  # fmt: skip
_REDIS_THEIRS = frozenset({"db", "username", "password"})
_FILES = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"),
    *("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile"),
)
_SENTINEL = frozenset({"sentinel_username", "sentinel_password", "sentinel_tls"})
_REDIS_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("protocol", "decode_responses", "encoding", "encoding_errors", "client_name",
         "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size",
         "retry_on_timeout", "retry_on_error", "retry", "health_check_interval", "max_connections",
         "timeout", "lib_name", "lib_version", "parser_class", "connection_class"),
        _OURS,
    ),
    # ioredis, go-redis, lettuce, jedis, StackExchange.Redis, redis-rs, Celery, Sidekiq
    **dict.fromkeys(
        ("dial_timeout", "read_timeout", "write_timeout", "connect_timeout", "connectTimeout",
         "commandTimeout", "pool_size", "pool_timeout", "min_idle_conns", "max_retries",
         "maxRetriesPerRequest", "enableReadyCheck", "enableOfflineQueue", "lazyConnect",
         "keepAlive", "connectionName", "clientName", "connect_timeout_ms", "abortConnect",
         "reconnect_attempts", "driver"),
        _NOT_NEEDED,
    ),
    **dict.fromkeys(("family", "ipFamily"), "both IPv4 and IPv6 are tried: remove it"),
    **dict.fromkeys(("ssl", "tls", "use_tls", "useSsl"), _TLS),
    **dict.fromkeys(
        ("skip_verify", "insecure", "verifyPeer", "tls_skip_verify"),
        "use rediss:// with ssl_cert_reqs=none",
    ),
    **dict.fromkeys(("user", "auth", "pass"), _LOGIN),
    **dict.fromkeys(("database", "database_id"), "use redis://host/N"),
    **dict.fromkeys(("keyPrefix", "prefix", "key_prefix", "namespace"),
                    "the streams have fixed names: use another database, redis://host/N"),
    **dict.fromkeys(
        ("master_name", "sentinelMasterId", "masterName", "service_name", "sentinels"),
        "use redis+sentinel://HOST:26379,HOST:26379/NAME",
    ),
    **dict.fromkeys(
        ("cluster", "addr", "cluster_mode"),
        "a cluster is recognised when connecting, redis://HOST,HOST names several nodes: remove it",
    ),
}  # fmt: skip

# Of libpq (its manual, section "Parameter Key Words"); a test compares them with the library.
LIBPQ_OPTIONS = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname",
    "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname",
    "load_balance_hosts", "max_protocol_version", "min_protocol_version", "oauth_client_id",
    "oauth_client_secret", "oauth_issuer", "oauth_scope", "options", "passfile", "password",
    "port", "replication", "require_auth", "requirepeer", "scram_client_key", "scram_server_key",
    "service", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcertmode",
    "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslkeylogfile", "sslmode",
    "sslnegotiation", "sslpassword", "sslrootcert", "sslsni", "target_session_attrs",
    "tcp_user_timeout", "user",
})  # fmt: skip
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SCHEMA = "set database_schema instead"
_POSTGRES_OURS = frozenset({
    "application_name", "client_encoding", "fallback_application_name", "replication",
})  # fmt: skip
_POSTGRES_REFUSED: Mapping[str, str] = {
    # Prisma, node-postgres, JDBC, Npgsql, pgx, lib/pq, SQLAlchemy, asyncpg, Supabase and Vercel
    **dict.fromkeys(("schema", "currentSchema", "search_path"), _SCHEMA),
    **dict.fromkeys(
        ("pgbouncer", "supa", "workaround", "prepareThreshold", "preparedStatementCacheQueries",
         "statement_cache_size", "prepared_statement_cache_size", "statement_cache_capacity",
         "statement_cache_mode", "default_query_exec_mode", "binary_parameters",
         "prepare_threshold"),
        "a pooler is recognised when connecting: remove it",
    ),
    **dict.fromkeys(
        ("connection_limit", "pool_timeout", "pool_size", "poolSize", "max_overflow", "max",
         "pool_max_conns", "pool_min_conns", "max_connections", "min_connections", "idle_timeout",
         "socket_timeout", "statement_timeout", "lock_timeout", "query_timeout", "timezone",
         "TimeZone", "datestyle", "charset", "encoding", "autocommit", "reWriteBatchedInserts",
         "single_use_connections", "idle_in_transaction_session_timeout", "loginTimeout"),
        _OURS,
    ),
    **dict.fromkeys(("ssl", "sslrequire", "tls", "requiressl"), "use sslmode=require"),
    **dict.fromkeys(
        ("sslaccept", "sslidentity", "rejectUnauthorized", "uselibpqcompat",
         "trustServerCertificate"),
        "use sslmode=require, which encrypts, or sslmode=verify-full with sslrootcert=FILE, which "
        "checks the server too",
    ),
    **dict.fromkeys(("sslca", "ssl_ca", "sslRootCert"), "use sslrootcert=FILE"),
    **dict.fromkeys(("username",), "use user"),
    **dict.fromkeys(("database", "db"), "use postgresql://host/DATABASE"),
    **dict.fromkeys(("ApplicationName", "applicationName"), _OURS),
    "targetServerType": "use target_session_attrs=read-write",
    "connectTimeout": "use connect_timeout",
    "socketTimeout": _OURS,
}  # fmt: skip
# What a session sets for itself (database/session.py).
_SESSION = frozenset({
    "array_nulls", "bytea_output", "client_encoding", "client_min_messages", "datestyle",
    "default_transaction_deferrable", "default_transaction_isolation", "extra_float_digits",
    "idle_in_transaction_session_timeout", "intervalstyle", "lock_timeout",
    "standard_conforming_strings", "statement_timeout", "synchronous_commit", "timezone",
    "transform_null_equals",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class RedisLogin:
    """How to log in to a Redis or a Sentinel, and by which TLS (None: without)."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)  # redis-py's `ssl_*` arguments


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed `redis_url`: a socket, servers, or sentinels that know the primary's address.

    Of several servers one is the primary, or they are nodes of a cluster.
    """

    hosts: tuple[tuple[str, int], ...]
    login: RedisLogin
    database: int = 0
    socket: str | None = None
    primary_name: str | None = None  # as the sentinels call it; `hosts` are theirs then
    sentinel_login: RedisLogin = RedisLogin()


def redis_url(text: str) -> str:
    """Return a Redis URL; raises ValueError without repeating it: it may hold a password."""
    parse_redis_url(text)
    return text


def parse_redis_url(text: str) -> RedisAddress:
    """Return the parts of a Redis URL. Raises ValueError, worded for the operator."""
    parts = _split(text, _REDIS_SCHEMES)
    secure = parts.scheme.startswith("rediss")
    sentinels = parts.scheme.endswith("+sentinel")
    options = _redis_options(parts, secure=secure, sentinels=sentinels)
    userinfo, _, place = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    tls = _tls_arguments(options) if secure else None
    login = RedisLogin(
        unquote(username) or options.get("username"),
        unquote(password) or options.get("password"),
        tls,
    )
    if parts.scheme == "unix":
        if not parts.path or place:
            raise ValueError("allowed is unix:///path/of/the/socket")
        return RedisAddress((), login, _database(options.get("db", "0")), unquote(parts.path))
    if not sentinels:
        database = parts.path.strip("/") or options.get("db", "0")
        return RedisAddress(_hosts(place, REDIS_PORT), login, _database(database))
    name, _, database = parts.path.removeprefix("/").partition("/")
    if not _PRIMARY_NAME.fullmatch(name):
        raise ValueError(
            "allowed is redis+sentinel://HOST:26379,HOST:26379/NAME, where NAME is that of the "
            "primary (`sentinel monitor NAME ...`)"
        )
    sentinel_tls = _yes("sentinel_tls", options.get("sentinel_tls", str(secure)))
    return RedisAddress(
        _sentinels(place),
        login,
        _database(database or options.get("db", "0")),
        primary_name=name,
        sentinel_login=RedisLogin(
            options.get("sentinel_username"),
            options.get("sentinel_password"),
            _tls_arguments(options) if sentinel_tls else None,
        ),
    )


def database_url(text: str) -> str:
    """Return a PostgreSQL URL; raises ValueError without repeating it: it may hold a password."""
    parts = _split(text, _POSTGRES_SCHEMES)
    if _NOT_FOR_LIBPQ.search(parts.netloc):
        raise ValueError(_NOT_ENCODED)
    for place in parts.netloc.rpartition("@")[2].split(","):  # several are tried in turn
        _host(place)
    options = _options(parts)
    for name, value in options.items():
        if why := _postgres_refusal(name, value):
            raise ValueError(f"its option {_shown(name)} cannot be used: {why}")
    return text


def files_of(url: str) -> list[Path]:
    """Return the files that the options of a URL name: certificates, keys and passwords."""
    options = dict(parse_qsl(url.partition("?")[2]))
    return [Path(path) for name in _FILES if (path := options.get(name, "")) not in ("", "system")]


def search_path_of(url: str) -> str | None:
    """Return the schema that a PostgreSQL URL puts first, or None without one."""
    found = _SEARCH_PATH.search(_options(_split(url, _POSTGRES_SCHEMES)).get("options", ""))
    return found[1] if found else None


def _redis_options(parts: SplitResult, *, secure: bool, sentinels: bool) -> dict[str, str]:
    options = _options(parts)
    known = _REDIS_THEIRS | (_SENTINEL if sentinels else set())
    for name in options:
        why = _REDIS_REFUSED.get(name)
        if name in _REDIS_TLS and not secure and "sentinel_tls" not in options:
            why = _TLS
        elif name in _SENTINEL and not sentinels:
            why = "use redis+sentinel://HOST:26379,HOST:26379/NAME"
        elif name not in known | _REDIS_TLS and why is None:
            why = _unknown(name, [*known, *_REDIS_TLS])
        if why:
            raise ValueError(f"its option {_shown(name)} cannot be used: {why}")
    return options


def _tls_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the TLS options as redis-py takes them."""
    found: dict[str, Any] = {name: options[name] for name in _REDIS_TLS & options.keys()}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = _yes("ssl_check_hostname", found["ssl_check_hostname"])
    if "ssl_cert_reqs" in found:
        wanted = str(found["ssl_cert_reqs"]).lower().removeprefix("cert_")  # Celery: CERT_NONE
        if wanted not in ("none", "optional", "required"):
            raise ValueError("its option ssl_cert_reqs: allowed are none, optional and required")
        found["ssl_cert_reqs"] = wanted
        if wanted == "none":
            found.setdefault("ssl_check_hostname", False)
    return found


def _postgres_refusal(name: str, value: str) -> str | None:
    if name in _POSTGRES_OURS:
        same = name == "client_encoding" and value.lower().replace("-", "") == "utf8"
        return None if same else _OURS
    if name == "sslmode" and value not in _SSL_MODES:
        hint = "; node-postgres' no-verify is sslmode=require" * (value == "no-verify")
        return f"allowed are {', '.join(_SSL_MODES)}{hint}"
    if name == "target_session_attrs" and value not in ("read-write", "primary"):
        return "allowed are read-write and primary: the pipeline writes"
    if name == "connect_timeout" and not (value.isdecimal() and int(value) > 0):
        return "allowed are whole seconds from 1 on"
    if name == "options":
        ours = {found.lower() for found in _GIVEN_SETTING.findall(value)} & _SESSION
        return f"it sets {', '.join(sorted(ours))}; {_OURS}" if ours else None
    if name in LIBPQ_OPTIONS:
        return None
    return _POSTGRES_REFUSED.get(name) or _unknown(name, sorted(LIBPQ_OPTIONS))


def _unknown(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return "there is none of this name" + (f"; did you mean {close[0]}?" if close else "")


def _options(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _shown(name: str) -> str:
    """Return an option's name unless it may be the rest of a password."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,60}", name) else "with an odd name"


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("allowed is redis://host:port/N, where N is the number of the database")
    return int(text)


def _yes(name: str, text: str) -> bool:
    value = _YES.get(text.lower())
    if value is None:
        raise ValueError(f"its option {name}: allowed are true and false")
    return value


def _sentinels(text: str) -> tuple[tuple[str, int], ...]:
    if not all(_host(place)[0] for place in text.split(",")):
        raise ValueError("allowed is redis+sentinel://HOST:26379,HOST:26379/NAME")
    return _hosts(text, SENTINEL_PORT)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """Return (host, port) pairs; an IPv6 address stands in brackets in a URL, and without here."""
    found = [_host(place) for place in text.split(",")]
    return tuple((host or "localhost", port or default_port) for host, port in found)


def _host(text: str) -> tuple[str, int | None]:
    try:
        place = urlsplit(f"//{text}")
        return unquote(place.hostname or ""), place.port
    except ValueError as error:
        raise ValueError(port_or_host(error)) from None


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    found = _URL.fullmatch(text)
    if _REST_OF_PASSWORD.match(text):
        raise ValueError(_NOT_ENCODED)
    if found is None or found["scheme"] not in schemes:
        allowed = f"a URL that starts with {' or '.join(f'{item}://' for item in schemes)}"
        if found is not None and found["scheme"] in ("redis-sentinel", "sentinel"):
            allowed = "redis+sentinel://HOST:26379,HOST:26379/NAME"
        hint = " (write # as %23)" * ("#" in text)
        raise ValueError(f"allowed is {allowed}{hint}")
    return SplitResult(found["scheme"], found["place"], found["path"], found["query"] or "", "")
