"""The official network beside the pipeline: its own packages from npm, live (`make official`)."""
