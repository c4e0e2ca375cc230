"""Networks that say how good an image looks, without another beside it."""

from jaxface.models.quality.quality_cnn import QualityCNN

__all__ = ["QualityCNN"]
