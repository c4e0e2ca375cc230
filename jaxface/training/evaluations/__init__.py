"""Evaluations of a state: what a stage reports and draws."""
