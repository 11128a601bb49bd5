"""What people answer about objects, and how anomaly scores learn from it."""
