"""What tokens may, apart from the rest so that the command line knows it without the extra ``web``."""

from __future__ import annotations

from typing import Final

SCOPES: Final = ("read", "feedback", "watch", "admin")
"""To look at everything, to say what an object is, to keep lists of one's own, to make and revoke tokens."""
