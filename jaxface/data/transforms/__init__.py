"""Pure changes of images and records: alignment, augmentation, resolution, corruption."""
