"""Synthetic identities as vectors or small images: what a claim about a loss needs, in seconds."""
