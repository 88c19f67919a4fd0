"""Chooses the port on which a worker serves its metrics."""

import errno
import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.observability.server import MetricsServer, serve
from rsky_pipeline.runtime.errors import SettingError

ATTEMPTS = 100
SUPERVISOR = "supervisor"

log = logging.getLogger(__name__)


def candidates(settings: Settings, role: str, instance: int) -> Iterator[int]:
    """Yield the ports to try: the first worker of a role has the role's port, further ones the
    ports that follow it, except the first port of another role or of the supervisor."""
    first = settings.metrics_port(role)
    if first == 0:
        yield 0
        return
    owners = (*ROLE_NAMES, SUPERVISOR)
    others = {settings.metrics_port(name) for name in owners if name != role}
    free = [port for port in range(first, min(first + 2 * ATTEMPTS, 65_536)) if port not in others]
    yield from free[instance - 1 : instance - 1 + ATTEMPTS] or [0]


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
