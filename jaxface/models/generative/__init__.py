"""Networks that make images or embeddings."""
