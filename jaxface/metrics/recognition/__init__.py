"""Verification, identification and classification."""
