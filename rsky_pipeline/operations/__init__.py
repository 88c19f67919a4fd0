"""What operators do to a running pipeline, as libraries that the commands call."""
