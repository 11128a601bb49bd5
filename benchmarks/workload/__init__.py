"""What ``benchmarks/stream.py`` is made of: packets, stars, servers, measurements and the report."""
