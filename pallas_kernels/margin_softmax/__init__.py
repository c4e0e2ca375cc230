"""Margin losses of embeddings against class prototypes, without their [B, C] matrix of cosines."""

from pallas_kernels.margin_softmax.api import MarginTerms, SFaceTerms, margin_softmax
from pallas_kernels.margin_softmax.heads import Head, Margin, SFace, arcface, cosface, softmax

__all__ = [
    "Head",
    "Margin",
    "MarginTerms",
    "SFace",
    "SFaceTerms",
    "arcface",
    "cosface",
    "margin_softmax",
    "softmax",
]
