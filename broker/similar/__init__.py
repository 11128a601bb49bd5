"""Embeddings of all live objects in Redis's vector sets: kept by the workers, asked by command, client and page."""
