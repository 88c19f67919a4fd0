"""Settings of a Redis server that a promise of the pipeline rests on.

Nothing is lost: an entry stays until it is acknowledged (`noeviction`). A restart at any moment
goes on where it was: streams and cursors outlive the server (an append-only file that it will read
again, or snapshots). A cursor is stored in one step with its data: one server holds all keys
(`streams.commands`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing

from rsky_pipeline.configuration.store_urls import parse_redis_url
from rsky_pipeline.runtime.server_setting import ServerSetting
from rsky_pipeline.streams.connection import Store, connect, text_of
from rsky_pipeline.streams.errors import StoreRejectedError
from rsky_pipeline.streams.names import FIREHOSE_LIVE

OLDEST_REDIS = (6, 2)
REPLAYS_ALL = (9, 1, 2)  # of Valkey
_DEFAULT_USER = "off ~* &* +@all (or on, with a password)"
_DROPPED = (
    "at its next start the server runs its append-only file as this user, and drops what it may "
    "not do: streams and cursors would be lost"
)


def check(url: str) -> list[ServerSetting]:
    """Return unsuitable settings of a server, the worst first.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    with closing(connect(url, name="check")) as store:
        return check_server(store, parse_redis_url(url).login.username)


def check_server(store: Store, user: str | None) -> list[ServerSetting]:
    """Return unsuitable settings, the worst first; those that may not be read are left out.

    `user` is that of the connection. Raises StoreUnavailableError and StoreRejectedError.
    """
    facts = server_facts(store)
    found = [*_unusable(facts, store), *_durability(facts, store), *_replicas(facts, store)]
    found += _replay(facts, store, user)
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        why = "a full server would remove entries that nobody has processed, without a trace"
        found.append(ServerSetting("error", "maxmemory-policy", policy, "noeviction", why))
    order = ("unusable", "error", "advice")
    return sorted(found, key=lambda item: order.index(item.severity))


def server_facts(store: Store) -> dict[str, str]:
    """Return the fields of INFO by name. Raises StoreUnavailableError and StoreRejectedError."""
    pairs = (line.partition(":") for line in text_of(store.call("INFO")).splitlines())
    return {name: value for name, separator, value in pairs if separator}


def _unusable(facts: Mapping[str, str], store: Store) -> Iterator[ServerSetting]:
    if facts.get("cluster_enabled") == "1" and not store.on_cluster:
        why = "the data of one step (entries, states and cursors) would lie on several servers"
        yield ServerSetting(
            "unusable", "cluster mode", "hidden by a proxy", "the nodes' addresses", why
        )
    version = facts.get("redis_version", "")  # Valkey names a compatible one here
    numbers = _numbers(version, 2)
    if numbers and numbers < OLDEST_REDIS:
        wanted = f"{OLDEST_REDIS[0]}.{OLDEST_REDIS[1]} or later"
        why = "older servers lack commands that streams need"
        yield ServerSetting("unusable", "version", version, wanted, why)
    if facts.get("role") == "slave":
        why = "a replica takes no writes: point redis_url at the primary, or at its sentinels"
        yield ServerSetting("error", "role", "replica", "primary", why)


def _durability(facts: Mapping[str, str], store: Store) -> Iterator[ServerSetting]:
    if facts.get("aof_last_write_status", "ok") != "ok":
        why = "the server cannot write its append-only file, and refuses writes: see its log"
        yield ServerSetting("error", "aof_last_write_status", "err", "ok", why)
    if facts.get("aof_enabled") != "0":
        return
    why = "a restart of the server goes back to the last snapshot; what came since is read again"
    if _configured(store, "save") == "":
        why = "nothing is saved: a restart of the server loses streams, cursors and queued repos"
        yield ServerSetting("error", "appendonly", "no", "yes", why)
    elif facts.get("rdb_last_bgsave_status", "ok") != "ok":
        why = "the last snapshot failed, and there is no append-only file: see the server's log"
        yield ServerSetting("error", "rdb_last_bgsave_status", "err", "ok", why)
    else:
        yield ServerSetting("advice", "appendonly", "no", "yes", why)


def _replay(facts: Mapping[str, str], store: Store, user: str | None) -> Iterator[ServerSetting]:
    """Look whether the server will read its append-only file again.

    At its start it runs the transactions of the file as the user `default`, whoever sent them, and
    drops those that this user may not run: with `user default off`, which takes its rights, that is
    every append with its cursor. Single commands are read, so that Redis looks as it should. Redis
    before 7.0 and the Valkey of REPLAYS_ALL do not ask; it is not known from which release on
    Redis does not, and the remedy does no harm there.
    """
    valkey = _numbers(facts.get("valkey_version", ""), 3)
    if facts.get("aof_enabled") != "1" or valkey >= REPLAYS_ALL:
        return
    try:
        answer = text_of(store.call("ACL", "DRYRUN", "default", "SET", FIREHOSE_LIVE, "1"))
    except StoreRejectedError:
        if user not in (None, "default") and _numbers(facts.get("redis_version", ""), 2) >= (7, 0):
            why = f"{_DROPPED}. Allow +acl|dryrun to the user of redis_url, to have it looked up"
            yield ServerSetting("advice", "the user default", "not known", _DEFAULT_USER, why)
        return
    if answer != "OK":
        yield ServerSetting("error", "the user default", "without rights", _DEFAULT_USER, _DROPPED)


def _replicas(facts: Mapping[str, str], store: Store) -> Iterator[ServerSetting]:
    """Advise a primary to stop when it is cut off from its replicas: one of them replaces it.

    A node of a cluster without a replica has nobody who could.
    """
    if store.on_cluster and not int(facts.get("connected_slaves", 0)):
        why = "when the node that holds the pipeline's keys fails, no other one has them"
        yield ServerSetting("advice", "replicas of the cluster's node", "0", "1 or more", why)
    if int(facts.get("connected_slaves", 0)) and _configured(store, "min-replicas-to-write") == "0":
        why = (
            "a primary that is cut off takes writes, which are lost when a replica has replaced it"
        )
        yield ServerSetting("advice", "min-replicas-to-write", "0", "1", why)


def _numbers(version: str, count: int) -> tuple[int, ...]:
    """Return the first numbers of a version, none of an empty one."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)[:count])


def _configured(store: Store, name: str) -> str | None:
    """Return a setting; None where the server does not tell, as managed services do not."""
    try:
        reply = store.call("CONFIG", "GET", name)
    except StoreRejectedError:
        return None
    return text_of(reply[1]) if reply else None
