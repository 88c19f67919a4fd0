"""The operator's pages, run to the letter on a Debian 12 with systemd: `make test-host`.

`root.py` makes the Debian once, `container.py` boots a copy that costs nothing, `host.py` sets
up stores of its own there, and the tests are a day of an operator, in their order.
"""
