"""Spectra as they come in, from files and from the topic ``spectra``, to ``ObservedSpectrum``."""
