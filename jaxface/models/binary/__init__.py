"""Networks whose inner layers are binary."""
