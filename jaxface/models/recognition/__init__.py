"""Embedding networks and classifiers."""
