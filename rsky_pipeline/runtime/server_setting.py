"""A setting of a store that does not fit; found by `streams/server.py` and `database/server.py`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ServerSetting:
    """A setting with an unsuitable value.

    `unusable`: the pipeline cannot work with the server; `error`: it breaks a promise, for example
    data can be lost; `advice`: it makes a large pipeline slow, or a promise narrower.
    """

    severity: Literal["unusable", "error", "advice"]
    name: str
    found: str
    wanted: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} is {self.found}, and should be {self.wanted}: {self.why}"
