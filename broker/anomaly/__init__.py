"""Reference sets, neighbours and anomaly scores."""
