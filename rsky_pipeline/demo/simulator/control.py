"""Asking a running simulation from another process. Blocking."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from rsky_pipeline.demo.simulator.tables import TABLES, Truth

TIMEOUT_SECONDS = 60.0
TRUTH_SECONDS = 1_800.0  # the rows of hundreds of thousands of events take minutes


class SimulationError(Exception):
    """The simulation does not answer, or not as expected."""


@dataclass(frozen=True, slots=True)
class SimulationProgress:
    """How far a simulation is."""

    stopped: bool
    published: int  # events
    seq: int  # number of the last event
    label_frames: int
    label_seq: int


class Control:
    """A simulation, by the URL of its relay."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc

    def progress(self) -> SimulationProgress:
        """Return how far it is. Raises SimulationError."""
        return self._progress("status")

    def release(self) -> SimulationProgress:
        """Release a simulation that was started with --hold; return its progress.

        Raises SimulationError.
        """
        return self._progress("release")

    def stop(self) -> SimulationProgress:
        """Have it publish nothing more; return where it ended. Raises SimulationError."""
        return self._progress("stop")

    def fall_silent(self, seconds: float) -> None:
        """Have the relay send nothing on its open sockets for a while. Raises SimulationError."""
        for _ in self._ask(f"silence?seconds={seconds}"):
            pass

    def faults(self, **rates: float) -> dict[str, int]:
        """Change rates of a hostile relay; return its faults so far. Raises SimulationError."""
        query = "&".join(f"{name}={rate}" for name, rate in rates.items())
        answer = b"".join(self._ask(f"faults?{query}"))
        counts: dict[str, int] = json.loads(answer)
        return counts

    def truth(self, *, handles: bool = False) -> Truth:
        """Return the rows that the database must hold (`truth.truth`). Raises SimulationError."""
        rows: Truth = {name: {} for name in TABLES}
        what = "truth?handles=1" if handles else "truth"
        for line in self._ask(what, TRUTH_SECONDS):
            part = json.loads(line)
            size = len(TABLES[part["table"]].key)
            for row in part["rows"]:
                rows[part["table"]][tuple(row[:size])] = tuple(row[size:])
        return rows

    def _progress(self, what: str) -> SimulationProgress:
        for line in self._ask(what):
            answer = json.loads(line)
            return SimulationProgress(
                **{name: answer[name] for name in SimulationProgress.__slots__}
            )
        raise SimulationError("the simulation gave an empty answer")

    def _ask(self, what: str, seconds: float = TIMEOUT_SECONDS) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=seconds)
        try:
            connection.request("GET", f"/simulator/{what}")
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise SimulationError(
                    f"/simulator/{what}: {response.status} {response.read(300)!r}"
                )
            yield from response
        except (OSError, http.client.HTTPException) as error:
            raise SimulationError(f"the simulation at {self._address}: {error}") from error
        finally:
            connection.close()
