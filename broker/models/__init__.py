"""Versions of the model in one repository: listed, built, checked, promoted and rolled back (docs/serving.md)."""
