"""The innermost loops of the program, compiled. `compiled` is where to import them from, and says
how they share their work with Python.

`blocks` reads CARs and writes records as JSON, `frames` reads commits and identifiers, `trees`
reads nodes and undoes operations. All indexing of input is checked; where a length lies, the
IndexError becomes None. Only undoing accepts more than Python: a node that it makes may stand for a
missing one of the same hash. `signatures` reads nothing: it checks them with the GIL released.
"""
