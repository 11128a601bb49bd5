"""Reference sets made from the stream: what its objects add, how they are kept, and which is in use."""
