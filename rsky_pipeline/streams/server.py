"""Settings of a Redis server that a promise of the pipeline rests on.

Nothing is lost: an entry stays until it is acknowledged (`noeviction`). A restart at any moment
goes on where it was: streams and cursors outlive the server (an append-only file, or snapshots). A
cursor is stored in one step with its data: one server holds all keys (no cluster).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing

from rsky_pipeline.runtime.server_setting import ServerSetting
from rsky_pipeline.streams.connection import Store, connect, text_of
from rsky_pipeline.streams.errors import StoreRejectedError

OLDEST_REDIS = (6, 2)
_CLUSTER = (
    "the data of one step (entries, states and cursors) would lie on several servers: use a server "
    "or replicas without cluster mode"
)


def check(url: str) -> list[ServerSetting]:
    """Return unsuitable settings of a server, the worst first.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    with closing(connect(url, name="check")) as store:
        return check_server(store)


def check_server(store: Store) -> list[ServerSetting]:
    """Return unsuitable settings, the worst first; those that may not be read are left out.

    Raises StoreUnavailableError and StoreRejectedError.
    """
    facts = server_facts(store)
    found = [*_unusable(facts), *_durability(facts, store), *_replicas(facts, store)]
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


def _unusable(facts: Mapping[str, str]) -> Iterator[ServerSetting]:
    if facts.get("cluster_enabled") == "1" or facts.get("redis_mode") == "cluster":
        yield ServerSetting("unusable", "cluster mode", "on", "off", _CLUSTER)
    version = facts.get("redis_version", "")  # Valkey names a compatible one here
    numbers = tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])
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


def _replicas(facts: Mapping[str, str], store: Store) -> Iterator[ServerSetting]:
    """Advise a primary to stop when it is cut off from its replicas: one of them replaces it."""
    if int(facts.get("connected_slaves", 0)) and _configured(store, "min-replicas-to-write") == "0":
        why = (
            "a primary that is cut off takes writes, which are lost when a replica has replaced it"
        )
        yield ServerSetting("advice", "min-replicas-to-write", "0", "1", why)


def _configured(store: Store, name: str) -> str | None:
    """Return a setting; None where the server does not tell, as managed services do not."""
    try:
        reply = store.call("CONFIG", "GET", name)
    except StoreRejectedError:
        return None
    return text_of(reply[1]) if reply else None
