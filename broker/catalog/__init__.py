"""Catalogues of sources in Redis: loading them, and finding the source that an alert is of."""
