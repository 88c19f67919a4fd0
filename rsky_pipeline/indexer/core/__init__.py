"""From entries to committed rows; `apply` is the algorithm, the other modules are its steps."""
