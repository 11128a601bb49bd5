"""Kafka: consumer, transactions, dead letters."""
