"""Training of Trifid's trimodal model; the service needs none of this at run time."""
