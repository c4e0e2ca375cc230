"""The console script `jaxface`, and what every command shares: flags from dataclasses, one-line errors, tables."""
