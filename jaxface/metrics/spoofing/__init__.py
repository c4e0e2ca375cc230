"""Presentation-attack detection: error rates, thresholds and protocols."""
