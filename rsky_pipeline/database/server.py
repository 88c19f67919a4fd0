"""Server settings that durability or speed depend on."""

from dataclasses import dataclass
from typing import Literal

from rsky_pipeline.database.connection import Database, Transaction

_SETTINGS = """
SELECT name, setting, unit FROM pg_settings WHERE name = ANY(%s)
"""
# A commit must survive a crash of the server and of its machine: its entries are acknowledged
# afterwards, and are not delivered again.
_PROMISED = {
    "fsync": "a crash of the machine can destroy the database, and acknowledged events with it",
    "full_page_writes": "a crash of the machine can leave torn pages, and destroy the database",
}
ADVISED_WAL_MB = 20 * 1024
ADVISED_CHECKPOINT_SECONDS = 30 * 60
_WAL_ADVICE = (
    "each first change of a page after a checkpoint writes all of it; a large database then spends "
    "most of its time on that"
)


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A setting with an unsuitable value.

    `error`: data can be lost; `advice`: a large database becomes slow.
    """

    severity: Literal["error", "advice"]
    name: str
    found: str
    wanted: str
    why: str


def check_server(tx: Transaction) -> list[ServerSetting]:
    """Return unsuitable settings of the server, errors first."""
    names = [*_PROMISED, "wal_compression", "max_wal_size", "checkpoint_timeout"]
    found = {name: (setting, unit) for name, setting, unit in tx.query(_SETTINGS, [names])}
    bad = [
        ServerSetting("error", name, "off", "on", why)
        for name, why in _PROMISED.items()
        if found[name][0] == "off"
    ]
    compression = found["wal_compression"][0]
    if compression in {"on", "pglz"}:
        why = "compressing pages of the log this way takes more processor time than all of the rest"
        bad.append(ServerSetting("advice", "wal_compression", compression, "off (or lz4)", why))
    for name, least, wanted in (
        ("max_wal_size", ADVISED_WAL_MB, "20GB"),
        ("checkpoint_timeout", ADVISED_CHECKPOINT_SECONDS, "30min"),
    ):
        value, unit = found[name]
        if int(value) < least:
            bad.append(
                ServerSetting("advice", name, f"{value}{unit}", f"{wanted} or more", _WAL_ADVICE)
            )
    return bad


def advise(url: str) -> list[ServerSetting]:
    """Return settings that slow down a large database. Raises DatabaseError."""
    with Database.connect(url, name="db") as database, database.transaction() as tx:
        return [item for item in check_server(tx) if item.severity == "advice"]
