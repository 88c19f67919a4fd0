"""Valkey and PostgreSQL from wheels, for machines that have neither."""
