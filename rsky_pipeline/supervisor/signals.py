"""What signals mean to a supervisor.

TERM, INT and HUP: ordered stop; a second one skips the draining, a third one kills. QUIT skips the
draining at once.
"""

import logging
import signal

import trio

from rsky_pipeline.supervisor.shutdown import StopRequest, Urgency

log = logging.getLogger(__name__)


async def watch_signals(
    request: StopRequest, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Turn signals into stop requests until cancelled."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup: leave it so
        numbers.append(signal.SIGHUP)
    heard = 0
    with trio.open_signal_receiver(*numbers) as received:
        task_status.started()
        async for number in received:
            heard = max(heard + 1, 2 if number == signal.SIGQUIT else 1)
            urgency = Urgency(min(heard, Urgency.KILL))
            what = {
                Urgency.DRAIN: "stopping in order; once more skips the draining",
                Urgency.HURRY: "skipping the draining; once more kills",
                Urgency.KILL: "killing",
            }[urgency]
            log.warning(what, extra={"signal": signal.Signals(number).name})
            request.raise_to(urgency)
