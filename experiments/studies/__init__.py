"""One file per method: the claims, arms and conditions that `experiments.reproduce` measures."""
