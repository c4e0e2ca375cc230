"""`CONFIG` of every method, in a file of its name: as small as all of its stages allow.

The file says too what tests of all methods cannot know:

- `SMALLEST_BATCH`: 2 unless given, as batch normalization needs; 1 where one image trains the network, which normalizes each by
  itself or has many places of it; None for batches of whole groups, of images with labels and without, of following sessions.
- `REFUSES_PACKS`: what `--validate-packs` is refused with, such as "a classifier tells no pairs"; nothing where packs are taken.
"""

import importlib


def of(method, name, default=None):
    """What the file of a method says; the default where it says nothing."""
    return getattr(importlib.import_module(f"small_configs.{method}"), name, default)
