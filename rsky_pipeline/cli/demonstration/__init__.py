"""The parts of `rsky-pipeline demo`: its processes, its figures, what is shown of them."""
