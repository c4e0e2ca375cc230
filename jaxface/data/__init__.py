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
from jaxface.data.corruption import RGBD_CORRUPTIONS, RgbdCorruption, augment_depth, corrupt_rgbd
from jaxface.data.crowded import CrowdedEmbeddings, crowded_embeddings
from jaxface.data.depth import (
    DepthImages,
    RgbdFolderSource,
    RgbdImages,
    decode_depth,
    encode_depth,
    nose_depth,
)
from jaxface.data.folder import FolderSource
from jaxface.data.groups import JoinedGroups
from jaxface.data.images import CorruptImage, decode_image, encode_image, fit_square
from jaxface.data.packs import PackSource, read_bin, write_bin
from jaxface.data.pipeline import Batches, Relabelled, batches, corrupt_labels, evaluation_batches
from jaxface.data.procedural import procedural_vectors
from jaxface.data.procedural_images import procedural_images
from jaxface.data.recordio import IRHeader, RecordFile, RecordIOFaces, RecordWriter, write_record
from jaxface.data.rendered import RenderedSource
from jaxface.data.resolution import (
    LowResolution,
    degrade_resolution,
    low_resolution,
    mirror_some,
    resize_twice,
)
from jaxface.data.samplers import ClassUniform, Order, SuperclassUniform, class_means, superclasses
from jaxface.data.shortcut import SHORTCUT, shortcut_digits
from jaxface.data.sources import Record, Source, Subset, WithFields, split_identities
from jaxface.data.specs import (
    AnyFaces,
    Bin,
    DigitHalves,
    Digits,
    Faces,
    Folder,
    GroupFolders,
    Lfw,
    LfwSubset,
    Olivetti,
    Procedural,
    ProceduralImages,
    RecordIO,
    RenderedFaces,
    RgbdFolder,
    ShortcutDigits,
    Split,
    Tfds,
    TonedFaces,
    load,
    load_all,
)
from jaxface.data.tfds_source import TfdsSource
from jaxface.data.variation import Variation

__all__ = [
    "RGBD_CORRUPTIONS",
    "SHORTCUT",
    "AnyFaces",
    "ArraySource",
    "Augment",
    "Augmentation",
    "Batches",
    "Bin",
    "ClassUniform",
    "CorruptImage",
    "CrowdedEmbeddings",
    "DepthImages",
    "DigitHalves",
    "Digits",
    "Faces",
    "Folder",
    "FolderSource",
    "GroupFolders",
    "IRHeader",
    "JoinedGroups",
    "Lfw",
    "LfwSubset",
    "LowResolution",
    "Olivetti",
    "Order",
    "PackSource",
    "Procedural",
    "ProceduralImages",
    "Record",
    "RecordFile",
    "RecordIO",
    "RecordIOFaces",
    "RecordWriter",
    "Relabelled",
    "RenderedFaces",
    "RenderedSource",
    "RgbdCorruption",
    "RgbdFolder",
    "RgbdFolderSource",
    "RgbdImages",
    "ShortcutDigits",
    "Source",
    "Split",
    "Subset",
    "SuperclassUniform",
    "Tfds",
    "TfdsSource",
    "TonedFaces",
    "Variation",
    "WithFields",
    "align_face",
    "augment_depth",
    "batches",
    "class_means",
    "corrupt_labels",
    "corrupt_rgbd",
    "crowded_embeddings",
    "decode_depth",
    "decode_image",
    "degrade_resolution",
    "digits",
    "encode_depth",
    "encode_image",
    "estimate_similarity",
    "evaluation_batches",
    "fit_square",
    "five_from_68",
    "lfw_people",
    "lfw_subset",
    "load",
    "load_all",
    "low_resolution",
    "mirror_some",
    "nose_depth",
    "olivetti",
    "procedural_images",
    "procedural_vectors",
    "read_bin",
    "resize_twice",
    "shortcut_digits",
    "split_identities",
    "superclasses",
    "template",
    "umeyama",
    "warp_affine",
    "write_bin",
    "write_record",
]
