"""The files of docs/monitoring/, made from the declared metrics and health rules.

In: metrics (`observability.catalogue`) and rules (`health.rules`). Out: recording rules, alerts and
dashboards as texts, which `make docs` writes. Read `files` first. Pure. It must not contain a
threshold of its own.
"""
