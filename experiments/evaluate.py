"""Evaluates a trained network on packs, benchmarks or any data: `jaxface evaluate` by another name.

python -m experiments.evaluate RUN --packs DIR
"""

import sys

from jaxface.cli.commands.evaluate import main

if __name__ == "__main__":
    main(sys.argv[1:])
