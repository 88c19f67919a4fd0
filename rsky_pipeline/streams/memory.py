"""How much memory the server and its streams use."""

from dataclasses import dataclass

from rsky_pipeline.streams.connection import Store


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Bytes used by the server, its limit (0 for none), and what the machine has (0: unknown)."""

    used: int
    limit: int
    machine: int
    policy: str  # what the server does at its limit; anything but noeviction loses queue data

    @property
    def share(self) -> float | None:
        """Return the used part of the limit, from 0 to 1; None without a limit."""
        return self.used / self.limit if self.limit else None


def server_memory(store: Store) -> ServerMemory:
    """Ask the server. Raises StoreUnavailable and StoreRejected."""
    facts = {}
    for line in store.call("INFO", "memory").decode().splitlines():
        name, _, value = line.partition(":")
        facts[name] = value
    return ServerMemory(
        int(facts.get("used_memory", 0)),
        int(facts.get("maxmemory", 0)),
        int(facts.get("total_system_memory", 0)),
        facts.get("maxmemory_policy", ""),
    )


def stream_bytes(store: Store, stream: str) -> int:
    """Return about how many bytes a stream takes, its groups included; 0 if there is none."""
    return int(store.call("MEMORY", "USAGE", stream) or 0)
