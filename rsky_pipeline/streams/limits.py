"""How much one call to Redis takes: meanwhile its single thread serves nobody else.

A page is what one read returns, a batch is what one write takes.
"""

PAGE_ENTRIES = 500
PAGE_WAITING = 1_000
PAGE_RECLAIMED = 100
PAGE_LETTERS = 100

BATCH_ENTRIES = 500  # removed or moved: about a millisecond
BATCH_LETTERS = 100  # each may hold an entry of some megabytes
BATCH_IDS = 1_000  # Lua's unpack has a limit of some thousands
BATCH_FIELDS = 2_000
BATCH_TRIMMED = 10_000  # entries: a few milliseconds
