"""Avro, read a batch at a time: containers and Confluent's wire format, schemas to programs, programs to columns."""
