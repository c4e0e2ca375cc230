"""What else is measured of a network: attention, fairness, discrepancy, protection."""
