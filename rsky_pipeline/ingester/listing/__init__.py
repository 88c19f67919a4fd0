"""What the ingester lists: all repos of a relay (`enumeration`), and gaps of it (`gap_repair`)."""
