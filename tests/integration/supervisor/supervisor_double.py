"""The real supervisor over worker doubles: `supervisor_double.py DATA_DIR ROLE... [NAME=VALUE...]`.

Without stores, unless `embedded` is among the arguments.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsky_pipeline.configuration.load import ConfigurationError
from rsky_pipeline.configuration.settings import Settings
from rsky_pipeline.configuration.topology import ROLE_NAMES
from rsky_pipeline.runtime import logging as log_setup
from rsky_pipeline.runtime.errors import WorkerError
from rsky_pipeline.supervisor.service import PipelinePlan, supervise

PROGRAM = (sys.executable, "-m", "tests.integration.supervisor.worker_double")


def settings_for(data_dir: Path, *, embedded: bool = False, **values: Any) -> Settings:
    settings = Settings(
        data_dir=data_dir,
        redis_url=None if embedded else "redis://unused",
        database_url=None if embedded else "postgresql://unused",
        ingester_metrics_port=0,
        indexer_metrics_port=0,
        backfiller_metrics_port=0,
        supervisor_metrics_port=0,
        log_format="text",
    )
    return replace(settings, **values)


def main() -> int:
    data_dir = Path(sys.argv[1])
    roles = [argument for argument in sys.argv[2:] if argument in ROLE_NAMES]
    values = dict(argument.split("=", 1) for argument in sys.argv[2:] if "=" in argument)
    settings = settings_for(
        data_dir,
        embedded="embedded" in sys.argv,
        **{name: int(value) for name, value in values.items()},
    )
    log_setup.configure("info", "text", role="supervisor")

    def read_again() -> Settings:
        """Read `settings.json`, which stands for the file of an operator."""
        path = data_dir / "settings.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        if "problem" in found:
            raise ConfigurationError([found["problem"]])
        return replace(settings, **found)

    try:
        plan = PipelinePlan(settings, tuple(roles), lambda *_: [], PROGRAM, read_again)
        return supervise(plan)
    except WorkerError as error:
        print(f"refused: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
