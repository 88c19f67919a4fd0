"""Compiled readers of well-formed, usual input: the innermost loops of the program.

Each function accepts a part of the input that its Python counterpart accepts, with the same result,
and returns None or False for everything else: the counterpart then decides, and names the reason.
So each rule about refusals stands once, in Python; tests/unit/atproto/test_compiled.py holds the
accepted part equal. Only undoing accepts more: a node that it makes may stand for a missing one of
the same hash. All indexing of input is checked; where a length lies, the IndexError becomes None.

`signatures` is different: it reads nothing, and checks signatures with the interpreter released.

Import these from `compiled`, which stands in for them where they were not built.
"""
