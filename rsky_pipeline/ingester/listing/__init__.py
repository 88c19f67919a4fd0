"""Lists of repos: all repos of a relay (`enumeration`), and repair of its gaps (`gap_repair`)."""
