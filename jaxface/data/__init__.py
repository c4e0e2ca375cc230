"""Sources of faces, augmentation, alignment and input pipelines.

A configuration names its data by one of the classes of `specs` (`RenderedFaces`, `Folder`, ...), `load` opens
and splits it, `batches` feeds the training and `evaluation_batches` the evaluation. The TFDS builder is in
`jaxface.data.faces_builder`.
"""

from jaxface.data.alignment import (
    align_face,
    estimate_similarity,
    five_from_68,
    template,
    umeyama,
    warp_affine,
)
from jaxface.data.augment import Augment, Augmentation
from jaxface.data.bundled import ArraySource, digits, lfw_people, lfw_subset, olivetti
from jaxface.data.folder import FolderSource
from jaxface.data.images import CorruptImage, decode_image, encode_image, fit_square
from jaxface.data.packs import PackSource, read_bin, write_bin
from jaxface.data.pipeline import Batches, Relabelled, batches, corrupt_labels, evaluation_batches
from jaxface.data.recordio import IRHeader, RecordFile, RecordIOFaces, RecordWriter, write_record
from jaxface.data.rendered import RenderedSource
from jaxface.data.sources import Record, Source, Subset, split_identities
from jaxface.data.specs import (
    AnyFaces,
    Bin,
    Digits,
    Faces,
    Folder,
    Lfw,
    LfwSubset,
    Olivetti,
    RecordIO,
    RenderedFaces,
    Split,
    Tfds,
    load,
    load_all,
)
from jaxface.data.tfds_source import TfdsSource
from jaxface.data.variation import Variation

__all__ = [
    "AnyFaces",
    "ArraySource",
    "Augment",
    "Augmentation",
    "Batches",
    "Bin",
    "CorruptImage",
    "Digits",
    "Faces",
    "Folder",
    "FolderSource",
    "IRHeader",
    "Lfw",
    "LfwSubset",
    "Olivetti",
    "PackSource",
    "Record",
    "RecordFile",
    "RecordIO",
    "RecordIOFaces",
    "RecordWriter",
    "Relabelled",
    "RenderedFaces",
    "RenderedSource",
    "Source",
    "Split",
    "Subset",
    "Tfds",
    "TfdsSource",
    "Variation",
    "align_face",
    "batches",
    "corrupt_labels",
    "decode_image",
    "digits",
    "encode_image",
    "estimate_similarity",
    "evaluation_batches",
    "fit_square",
    "five_from_68",
    "lfw_people",
    "lfw_subset",
    "load",
    "load_all",
    "olivetti",
    "read_bin",
    "split_identities",
    "template",
    "umeyama",
    "warp_affine",
    "write_bin",
    "write_record",
]
