"""The three encoders and the classifier head."""
