"""A renderer of people who do not exist: geometry, appearance, rasterization and a source of their images."""
