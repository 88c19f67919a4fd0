"""What an operator does with the queue of repos: add, look, try again, cancel."""
