"""Learned codecs of pictures and videos, and their deployed form: whole numbers from the bits to the tables."""

from jaxface.models.compression.codec import Codec, Coded, codec_bytes, make_codec, read_codec
from jaxface.models.compression.integers import Tables, make_tables
from jaxface.models.compression.networks import EDIC, CodecSpec, decoder_macs, equal_macs

__all__ = [
    "EDIC",
    "Codec",
    "CodecSpec",
    "Coded",
    "Tables",
    "codec_bytes",
    "decoder_macs",
    "equal_macs",
    "make_codec",
    "make_tables",
    "read_codec",
]
