"""Settings: declared once, read from file, environment and flags, checked before anything starts.

`settings` declares every setting with its default, range and meaning; `load` reads and checks them
(`sources` reads, `values` parses one text) and returns `Settings` with the origin of each value, or
all problems at once. `topology` says which streams each role consumes and produces, `endpoints`
parses hosts into their one spelling, `expectations` derives the figures of a healthy pipeline.
Read `settings` and `load` first.

Pure but for reading the file; imports nothing else of ours.
"""
