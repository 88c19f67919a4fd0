"""Programs for contributors; they are not installed."""
