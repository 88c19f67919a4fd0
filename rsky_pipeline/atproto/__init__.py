"""The AT Protocol: frames, CARs, DAG-CBOR, commits, MSTs, signatures, identifiers, labels.

In: untrusted bytes. Out: typed values, or an InvalidDataError whose `reason` is a short code; every
reader bounds depth, number and memory. Pure: no I/O, no clock, no tasks, no threads; it must not
import any other package of ours.

`frame` and `commit` are what a firehose consumer reads first, `car` and `mst` what a repo is made
of. Each rule stands in Python, which says why something is refused; `native` has compiled readers
of what is well formed and usual, `compiled` is where others get them, and `rules` what both share.
"""
