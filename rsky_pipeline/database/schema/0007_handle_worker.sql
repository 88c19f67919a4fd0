-- Who looks a handle up: after a restart a worker goes on with what it had taken.
ALTER TABLE rsky_pipeline.handle_check ADD COLUMN taken_by text;
