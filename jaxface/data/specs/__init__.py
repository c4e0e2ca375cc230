"""Which data a run uses: descriptions for configurations and the command line, one module per kind of origin."""
