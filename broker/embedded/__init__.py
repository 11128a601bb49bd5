"""Servers started by Trifid itself, for the demo and the tests."""
