"""Streams to rows: plan (pure), apply (one transaction a batch), poison, collections.

Keeps the promise that for every uri the state of the highest rev stands, whatever the arrival order."""
