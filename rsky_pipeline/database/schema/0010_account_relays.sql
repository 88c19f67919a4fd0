-- Account events are ordered within a relay by its sequence numbers, between relays by their times.
-- A row is the event that stands (relay, seq, event_time, active, status); an unknown relay is NULL.
ALTER TABLE rsky_pipeline.account_event
    ADD COLUMN latest text,  -- the latest time that its relay has sent, where it is another one
    ADD COLUMN others text;  -- JSON of the newest events of other relays
