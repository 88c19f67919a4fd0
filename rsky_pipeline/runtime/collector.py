"""Python's search for reference cycles, set for programs that make many objects and few cycles."""

import gc

# By default it looks for cycles after every 700 objects more. A batch of events is a hundred
# thousand, and hardly any of them is in a cycle: the search cost a tenth of reading events.
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 100


def ease_collector() -> None:
    """Search for cycles less often, and never among what is loaded by now."""
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
