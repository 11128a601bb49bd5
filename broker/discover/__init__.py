"""Subclasses: whether the embeddings of one class fall into groups, and what tells them apart. Needs scikit-learn."""
