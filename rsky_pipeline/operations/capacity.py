"""How long streams can hold what comes in, and which marks fit into the memory. Pure."""

from dataclasses import asdict, dataclass
from typing import Any

# Of the memory, what streams may fill: the rest is for acknowledgements, copies while the file of
# commands is written anew, and what producers append before they notice.
USABLE_SHARE = 0.7
# Without a limit of its own the server shares the machine with others.
MACHINE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of one stream; None where it was not measured or does not apply."""

    stream: str
    length: int
    bytes_each: float | None
    rate_in: float | None  # entries per second
    mark: int | None  # the high-water mark


@dataclass(frozen=True, slots=True)
class Advice:
    """What one stream can hold. Hours are at the measured rate.

    `mark_hours` is how long consumers may stand still before the producer has to wait,
    `memory_hours` how long until the memory is used up, and `fitting_mark` the highest mark with
    which this stream's share of the memory is enough.
    """

    stream: str
    bytes_each: float | None
    rate_in: float | None
    mark: int | None
    mark_hours: float | None
    memory_hours: float | None
    fitting_mark: int | None
    text: str

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def usable_bytes(limit: int, machine: int) -> int:
    """Return how many bytes streams may take together; 0 when nothing is known."""
    return int((limit or machine * MACHINE_SHARE) * USABLE_SHARE)


def advise(loads: list[Load], usable: int) -> list[Advice]:
    """Return advice for each stream; the memory is shared out in the ratio of marks times sizes."""
    wanted = {load.stream: _wanted(load) for load in loads}
    together = sum(wanted.values())
    return [
        _advice(load, usable * wanted[load.stream] / together if together else 0.0)
        for load in loads
    ]


def _wanted(load: Load) -> float:
    return (load.mark or 0) * (load.bytes_each or 0.0)


def _advice(load: Load, share: float) -> Advice:
    size, rate, mark = load.bytes_each, load.rate_in, load.mark
    fitting = int(share / size) if size and share else None
    mark_hours = mark / rate / 3600 if mark and rate else None
    memory_hours = fitting / rate / 3600 if fitting and rate else None
    text = _text(load, fitting, mark_hours, memory_hours)
    return Advice(load.stream, size, rate, mark, mark_hours, memory_hours, fitting, text)


def _text(
    load: Load, fitting: int | None, mark_hours: float | None, memory_hours: float | None
) -> str:
    if load.bytes_each is None:
        return "no entries to measure"
    parts = [f"{load.bytes_each:,.0f} bytes an entry"]
    if load.mark is not None and mark_hours is not None:
        parts.append(f"the mark of {load.mark:,} is {_hours(mark_hours)} at {load.rate_in:,.0f}/s")
    if fitting is not None and memory_hours is not None:
        parts.append(f"the memory is enough for {fitting:,} entries, {_hours(memory_hours)}")
    elif fitting is not None:
        parts.append(f"the memory is enough for {fitting:,} entries")
    if load.mark is not None and fitting is not None and load.mark > fitting:
        parts.append("lower the mark or raise maxmemory")
    return "; ".join(parts)


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
