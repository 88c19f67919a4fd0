"""The settings with which the workers of each role are started, and reading them again.

A supervisor reads the configuration when it starts. An operator may have it read again for a role
that is restarted; what the supervisor itself or the stores were set up with stays until it ends.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from rsky_pipeline.configuration.load import ConfigurationError
from rsky_pipeline.configuration.settings import Settings, declarations
from rsky_pipeline.embedded.locations import resolve_directories, store_urls
from rsky_pipeline.supervisor.protocol import BadRequestError

_START = "`rsky-pipeline stop --ordered`, then `rsky-pipeline start`"


class RoleSettings:
    """The settings of each role of one supervisor. For one task at a time."""

    def __init__(
        self, settings: Settings, roles: Sequence[str], read: Callable[[], Settings] | None
    ) -> None:
        """`read` reads the configuration as at the start; it raises ConfigurationError."""
        self._of = dict.fromkeys(roles, settings)
        self._read = read

    def of(self, role: str) -> Settings:
        """Return the settings for the next worker of a role."""
        return self._of[role]

    def read_again(self, roles: Sequence[str]) -> dict[str, list[str]]:
        """Read the configuration for these roles; return the names that changed, by role.

        Raises BadRequestError, changing nothing, for a configuration that cannot be used, or one
        that a restart of workers does not apply.
        """
        if self._read is None:
            return {}
        fresh = self._fresh()
        changed = {role: _different(self._of[role], fresh) for role in roles}
        known = declarations()
        fixed = sorted({name for names in changed.values() for name in names
                        if known[name].applies == "start"})  # fmt: skip
        if fixed:
            raise BadRequestError(
                f"{', '.join(fixed)} changed since the supervisor started, and a restart of "
                f"workers does not apply that; to do: {_START}"
            )
        self._of.update(dict.fromkeys(roles, fresh))
        return {role: names for role, names in changed.items() if names}

    def differ_from(self, digests: Mapping[str, str]) -> list[str]:
        """Return the settings in which a command's configuration differs from that read here."""
        if self._read is None:
            return []
        own = settings_digests(self._fresh())
        return sorted(name for name, digest in digests.items() if own.get(name, digest) != digest)

    def log_level(self) -> str:
        """Return the level of the configuration as it is now. Raises BadRequestError."""
        return self._fresh().log_level

    def set_log_level(self, role: str, level: str) -> None:
        """Have the next workers of a role log at a level."""
        self._of[role] = replace(self._of[role], log_level=level)

    def _fresh(self) -> Settings:
        if self._read is None:
            raise BadRequestError("this supervisor cannot read its configuration again")
        try:
            return store_urls(resolve_directories(self._read()))
        except ConfigurationError as error:
            problems = "; ".join(error.problems)
            raise BadRequestError(f"the configuration cannot be used: {problems}") from error


def settings_digests(settings: Settings) -> dict[str, str]:
    """Return a short digest of each value, to compare configurations without telling secrets."""
    return {
        item.name: hashlib.sha256(
            json.dumps(getattr(settings, item.name), default=str).encode()
        ).hexdigest()[:16]
        for item in fields(settings)
    }


def _different(before: Settings, after: Settings) -> list[str]:
    return [item.name for item in fields(before)
            if getattr(before, item.name) != getattr(after, item.name)]  # fmt: skip
