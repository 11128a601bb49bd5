"""Drift: whether the stream of alerts, and what the model says of it, is still what it was (docs/drift.md)."""
