"""rsky-pipeline: feeds the PostgreSQL database behind a Bluesky AppView."""

__version__ = "0.1.0"
