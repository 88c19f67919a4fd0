"""What must be seen of each fault of a hostile relay: a metric that moved and a line of the log."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

RATES = {
    "drop": 0.01, "repeat": 0.02, "reorder": 0.01, "corrupt": 0.02, "truncate": 0.01,
    "jump": 0.004, "leap": 0.005, "forge": 0.01, "smuggle": 0.01, "hide": 0.01,
    "strip": 0.01, "too_big": 0.005, "sync": 0.005, "future": 0.1,
    "rotate": 0.003, "rotate_quietly": 0.003,
}  # fmt: skip
OPTIONS = tuple(f"--fault={name}={rate}" for name, rate in RATES.items())
QUEUED = "queued resync"
UNUSABLE = "frame not usable, or only in part"
OLD = "skipped an event whose sequence number is not new"
IGNORED = "ignored a sequence number from which its host did not go on"
FOLLOWED = "followed a jump in the sequence numbers of a host"
OTHER_KEY = "signing key of an account changed"


class Evidence(NamedTuple):
    """A series of the ingester that moves, by what share of the faults at least, and a line."""

    series: str
    share: float  # 0: that it moves is enough
    message: str
    fields: dict[str, str]


def _reason(metric: str, value: str, label: str = "reason") -> str:
    return f'ingester_{metric}_total{{{label}="{value}"}}'


def _resync(reason: str, metric: str = "resyncs") -> Evidence:
    return Evidence(_reason(metric, reason), 0, QUEUED, {"reason": reason})


EVIDENCE: dict[str, Evidence] = {
    "drop": _resync("broken_chain"),
    "repeat": Evidence("ingester_duplicate_frames_total", 1.0, OLD, {}),
    "reorder": Evidence(_reason("seq_jumps", "ignored", "outcome"), 0.3, IGNORED, {}),
    "corrupt": Evidence(
        _reason("error_reasons", "hash_mismatch"), 0.2, UNUSABLE, {"reason": "hash_mismatch"}
    ),
    "truncate": Evidence(_reason("frames", "undecodable", "type"), 0.9, UNUSABLE, {}),
    "jump": Evidence(
        _reason("seq_jumps", "followed", "outcome"), 0.7, FOLLOWED, {}
    ),
    "leap": Evidence(
        _reason("seq_jumps", "ignored", "outcome"), 0.7, IGNORED, {},
    ),
    "forge": Evidence(
        _reason("verifications", "forged", "verdict"), 1.0, QUEUED, {"reason": "forged"}
    ),
    "smuggle": _resync("invalid_operation", "error_reasons"),
    "hide": _resync("inversion", "error_reasons"),
    "strip": _resync("broken_chain"),
    "too_big": _resync("too_big"),
    "sync": _resync("sync"),
    "future": Evidence(
        _reason("error_reasons", "future_time"), 0.9,
        "time of an event far in the future", {},
    ),
    "rotate": Evidence(
        _reason("key_changes", "yes", "announced"), 0, OTHER_KEY, {"announced": "yes"}
    ),
    "rotate_quietly": Evidence(
        _reason("key_changes", "no", "announced"), 0, OTHER_KEY, {"announced": "no"}
    ),
    "silence": Evidence(
        _reason("disconnects", "idle"), 1.0, "disconnected", {"reason": "idle"}
    ),
}  # fmt: skip


def unseen(
    faults: Mapping[str, int], value: Callable[[str], float], lines: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return what cannot be seen of faults; `value` reads a series, lines have their `msg`."""
    lines, missing, expected = list(lines), list[str](), Counter[str]()
    for fault, count in faults.items():
        evidence = EVIDENCE[fault]
        if not count:
            missing.append(f"{fault}: did not happen")
        # Series that tell of several faults must have moved by all of them.
        expected[evidence.series] += evidence.share * count  # type: ignore[assignment]
        wanted = {"msg": evidence.message, **evidence.fields}
        if not any(wanted.items() <= line.items() for line in lines):
            missing.append(f"{fault}: no line {wanted}")
    for series, least in expected.items():
        found = value(series)
        if not found or found < least:
            missing.append(f"{series} is {found:g}, expected {least:g}")
    return missing
