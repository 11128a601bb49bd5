"""Trifid: a survey alert broker that classifies light curves, spectra and metadata."""

__version__ = "0.1.0"
