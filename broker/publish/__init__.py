"""The published alert: schema, topics, producer."""
