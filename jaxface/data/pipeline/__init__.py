"""From a source to batches: order, shuffling, sharding and augmentation."""
