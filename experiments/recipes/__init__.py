"""What the methods of one task share."""
