"""Durations as options: 90, 90s, 30m, 1h, 7d."""

import re
from typing import Any

import click

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_FORM = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")


class Duration(click.ParamType[float]):
    """A number of seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _FORM.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r}: allowed is a duration such as 90s, 30m, 1h or 7d", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


DURATION = Duration()
