"""Chooses the port on which a worker serves its metrics."""

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES, start_order
from rsky_pipeline.observability.server import MetricsServer, serve
from rsky_pipeline.runtime.errors import SettingError

ATTEMPTS = 100
SUPERVISOR = "supervisor"
_SECOND = "backfiller"  # of the roles that may have several workers

log = logging.getLogger(__name__)


def candidates(settings: Settings, role: str, instance: int) -> Iterator[int]:
    """Yield the ports to try, the one that is this process' own first.

    The first worker of a role has the role's port, and the supervisor of a single role one of three
    that follow each other (`supervisor_instance`), in whatever order they are started. Further
    workers have ports behind all of these, those of two roles in turn.
    """
    first = settings.metrics_port(role)
    if first == 0:
        yield 0
        return
    others = {settings.metrics_port(name) for name in ROLE_NAMES if name != role}
    if role != SUPERVISOR:
        supervisors = settings.metrics_port(SUPERVISOR)
        others |= set(range(supervisors, supervisors + len(ROLE_NAMES)))
    others |= {settings.seen_port, settings.embedded_database_port}
    free = [port for port in range(first, min(first + 4 * ATTEMPTS, 65_536)) if port not in others]
    place = instance - 1
    if role != SUPERVISOR and instance > 1:
        place = 1 + (instance - 2) * (len(ROLE_NAMES) - 1) + (role == _SECOND)
    yield from free[place : place + ATTEMPTS] or [0]


def supervisor_instance(roles: Sequence[str]) -> int:
    """Return the place of a supervisor's port among those of supervisors of one role each."""
    return 1 + start_order().index(roles[0]) if len(roles) == 1 else 1


def planned(settings: Settings, *, each_role: bool) -> dict[str, list[int]]:
    """Return the ports by job, of all workers and supervisors that the settings ask for.

    `each_role`: a supervisor for each role, as the units are, instead of one.
    """
    roles = start_order(settings.expected_roles)
    supervised: list[tuple[str, ...]] = [(role,) for role in roles] if each_role else [roles]
    ports = {
        role: [next(candidates(settings, role, number + 1))
               for number in range(settings.workers(role))]
        for role in roles
    }  # fmt: skip
    ports[SUPERVISOR] = [
        next(candidates(settings, SUPERVISOR, supervisor_instance(one))) for one in supervised
    ]
    return ports


def open_metrics_server(
    settings: Settings,
    role: str,
    instance: int,
    registry: CollectorRegistry,
    health: Callable[[], tuple[int, Mapping[str, object]]],
) -> MetricsServer:
    """Serve on the first candidate that is free.

    An occupied port is logged and skipped: it must not stop the pipeline. An address that does not
    belong to this host raises SettingError.
    """
    for port in candidates(settings, role, instance):
        try:
            return serve(registry, settings.metrics_host, port, health)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SettingError(
                    f"cannot serve metrics on {settings.metrics_host}:{port}: {error.strerror}; "
                    f"change metrics_host or {role}_metrics_port"
                ) from error
            log.warning("metrics port in use, trying the next one", extra={"port": port})
    raise SettingError(
        f"no free metrics port from {settings.metrics_port(role)} on; change {role}_metrics_port"
    )
