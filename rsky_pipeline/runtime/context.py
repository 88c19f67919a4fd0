"""The interface between a worker process and the role that it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from prometheus_client import CollectorRegistry

from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.runtime.health import Activity
from rsky_pipeline.runtime.health_document import RoleHealth


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The environment of one role: settings and stop events in, readiness and health out.

    `settings.redis_url`, `settings.database_url`, `data_dir` and `run_dir` are always set here:
    the supervisor has filled in the embedded stores and the directories.

    A role runs until `stopping` is set. It then reads no new entries, finishes or releases those it
    holds, and returns. Once `escalated` is set too, it finishes only the write in progress.
    """

    settings: Settings
    role: str
    instance: int  # 1 for the first worker of a role
    consumer: str  # host, role and instance: stable over restarts, unique per Redis
    registry: CollectorRegistry
    ready: Callable[[], None]  # call once: stores connected, own pending read, socket open
    activity: Callable[[str], Activity]  # for work that must not stall: see `Activity`
    health: Callable[[RoleHealth], None]  # merged into /healthz and `status`
    blameless: bool = False  # whatever ended the worker before, it was not its work: see `Trial`
    stopping: trio.Event = field(default_factory=trio.Event)
    escalated: trio.Event = field(default_factory=trio.Event)
