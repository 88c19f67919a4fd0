"""Valkey and PostgreSQL from wheels, for machines that have neither.

Finds the server programs, prepares their directories and tells how they are started, stopped and
asked whether they answer. Must not know what they are used for, nor supervise them; the wheels'
own Python code is never imported."""
