"""The surroundings of a role, as the worker process that runs it hands them over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.health import Activity
from rsky_pipeline.runtime.health_document import Detail


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The surroundings of one worker: settings in, readiness and health out.

    `settings.redis_url`, `settings.database_url`, `data_dir` and `run_dir` are always set here:
    the supervisor has filled in the embedded stores and the directories.

    A role runs until `stopping` is set, then takes nothing new, finishes or releases what it
    holds, and returns. When `escalated` is set as well it finishes only the write in progress.
    """

    settings: Settings
    role: str
    instance: int  # 1 for the first worker of a role
    consumer: str  # stable over restarts, unique on this Redis: host, role and instance
    registry: CollectorRegistry
    ready: Callable[[], None]  # call once: stores connected, own pending recovered, socket open
    activity: Callable[[str], Activity]  # enter it for work that must not stall: see `Activity`
    health: Callable[[Mapping[str, Detail]], None]  # merged into /healthz and `status`
    stopping: trio.Event = field(default_factory=trio.Event)
    escalated: trio.Event = field(default_factory=trio.Event)
