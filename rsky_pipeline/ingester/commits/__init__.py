"""Commits of relays: conversion, validation, signatures, states, resyncs, copies of other relays.

Read `rsky_pipeline.ingester.pipeline` first: it calls these in their order."""
