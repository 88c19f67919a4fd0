"""The pipeline on a network of its own, compared row for row (`rsky-pipeline demo`).

`simulator` serves relay, PDS, PLC directory and labeler on loopback, and works out the rows that a
correct database holds; it knows nothing of the pipeline. The other modules run both as processes,
watch them, and compare. Stands beside the layers: nothing of the pipeline imports it.
"""
