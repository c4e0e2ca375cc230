"""Commands tied to one method or demonstration."""
