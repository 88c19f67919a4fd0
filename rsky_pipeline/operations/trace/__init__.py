"""Where is this record, or this account? Asked at every place on the way from PDS to AppView.

`run.trace` asks everybody; `verdict.judge`, which is pure, says what it amounts to.
"""
