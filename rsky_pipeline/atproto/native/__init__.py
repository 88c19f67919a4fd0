"""Readers of what is well formed and usual, compiled: the innermost loops of the program.

Each function accepts a part of what its Python counterpart accepts, with the same result, and
answers None or False to everything else: the counterpart then decides, and says what is wrong. Only
undoing accepts more: a node that it makes may stand for a missing one of the same hash. All
indexing of what came from outside is checked; where a length lies, the IndexError makes it None.

`signatures` is different: it reads nothing, and tells good signatures from bad ones with the
interpreter released.

`compiled` is what others import.
"""
