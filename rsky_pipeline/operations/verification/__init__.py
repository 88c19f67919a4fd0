"""Checking a running pipeline from outside: what an operator would look at after a deployment.

`run.verify` does everything; each module holds checks of one kind, from figures to `Check`s.
"""
