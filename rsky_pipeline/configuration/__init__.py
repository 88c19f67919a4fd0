"""What an operator can set, where each value came from, and the data-flow graph of the roles.

Imports nothing of ours: every other package may depend on it."""
