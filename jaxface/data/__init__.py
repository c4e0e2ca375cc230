"""Sources of faces, augmentation, alignment and input pipelines.

A configuration names its data by one of the classes of `specs` (`RenderedFaces`, `Folder`, ...), `load` opens
and splits it, `batches` feeds the training and `evaluation_batches` the evaluation. The TFDS builder is in
`jaxface.data.faces_builder`.
"""

# ruff: noqa: E402 - what is missing is named before anything fails for want of it
from jaxface.extras import need

need("data", "absl", "cv2", "grain", "PIL")

from jaxface.data.pipeline.batches import Batches, Relabeled, batches, corrupt_labels, evaluation_batches
from jaxface.data.pipeline.buckets import BucketOrder, bucket_evaluation_batches, bucket_order
from jaxface.data.pipeline.samplers import (
    ClassUniform,
    Order,
    SuperclassUniform,
    class_means,
    repeat_factors,
    repeat_rare_classes,
    superclasses,
)
from jaxface.data.pipeline.two_streams import TwoStreams, labeled_split
from jaxface.data.render.expressions import ExpressionSource
from jaxface.data.render.face_captions import CaptionedSource
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.scenes import SceneSource, SceneVariation
from jaxface.data.render.variation import Variation
from jaxface.data.sources.annotated import AnnotatedSource
from jaxface.data.sources.bundled import ArraySource, digits, lfw_people, lfw_subset, olivetti
from jaxface.data.sources.coco import coco
from jaxface.data.sources.depth import (
    DepthImages,
    RgbdFolderSource,
    RgbdImages,
    decode_depth,
    encode_depth,
    nose_depth,
)
from jaxface.data.sources.expressions import majority_votes
from jaxface.data.sources.fddb import fddb
from jaxface.data.sources.few_data import FewData, check_unseen_classes, class_record, stratified_subset
from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.groups import JoinedGroups
from jaxface.data.sources.ijb import TemplateSource
from jaxface.data.sources.images import CorruptImage, decode_image, encode_image, fit_square
from jaxface.data.sources.long_tail import LongTail, long_tail_counts
from jaxface.data.sources.low_resolution_faces import ScfaceSource, TinyFaceSource
from jaxface.data.sources.megaface import MegaFaceSource
from jaxface.data.sources.objects import object_fields
from jaxface.data.sources.opinions import RatedFiles, RatedSource
from jaxface.data.sources.packs import PackSource, open_packs, read_bin, write_bin
from jaxface.data.sources.presentations import (
    Presentation,
    PresentationFiles,
    RenderedPresentations,
    casia_surf,
    cefa,
    presentation_table,
)
from jaxface.data.sources.recordio import IRHeader, RecordFile, RecordIOFaces, RecordWriter, write_record
from jaxface.data.sources.semantics import WithSemantics, redraw_semantics
from jaxface.data.sources.small_images import cifar10, cifar100, mnist, read_idx
from jaxface.data.sources.source import NoisyLabels, Record, Source, Subset, WithFields, split_identities
from jaxface.data.sources.tasks import (
    TaskOrdered,
    TaskSpec,
    check_memory,
    check_tasks,
    exemplar_rows,
    session_source,
)
from jaxface.data.sources.tfds_source import TfdsSource
from jaxface.data.sources.vectors import VectorSource, read_embeddings
from jaxface.data.sources.voc import voc
from jaxface.data.sources.wider_face import wider_face
from jaxface.data.specs.annotated_presentation_sets import (
    AnnotatedPresentations,
    CelebaSpoof,
    DigitPresentations,
    OuluNpu,
    Siw,
)
from jaxface.data.specs.base import KINDS, DataSpec, Split, load, load_all
from jaxface.data.specs.benchmarks import Ijb, MegaFace, Scface, TinyFace
from jaxface.data.specs.bundled_sets import DigitHalves, Digits, Lfw, LfwPatches, LfwSubset, Olivetti
from jaxface.data.specs.canvases import ClutteredDigits, DigitCanvas, TexturedDigits
from jaxface.data.specs.captioned_sets import CaptionedCanvas, CaptionedFaces, CaptionedPhotographs
from jaxface.data.specs.class_lists import ClassFolders, Clothing1m, Cub200, ImageLists
from jaxface.data.specs.dense_sets import DensePairs
from jaxface.data.specs.detection_sets import Coco, Fddb, Scenes, Voc, WiderFace
from jaxface.data.specs.ellipse_sets import Ellipses
from jaxface.data.specs.embeddings import Crowd, EmbeddingFile
from jaxface.data.specs.expressions import AffectNet, FerPlus, RafDb, RenderedExpressions
from jaxface.data.specs.image_sets import DeadLeaves, MovingLeaves, Patches
from jaxface.data.specs.labeled_images import LabeledImages
from jaxface.data.specs.object_scene_sets import ObjectScenes
from jaxface.data.specs.photographs import Bin, Folder, GroupFolders, RecordIO, RgbdFolder, Tfds
from jaxface.data.specs.presentation_sets import CasiaSurf, Cefa, Presentations, PresentationTable
from jaxface.data.specs.rated_sets import Csiq, DistortedLeaves, Kadid10k, LiveIqa, OpinionTable
from jaxface.data.specs.rendered_people import RenderedFaces, TonedFaces
from jaxface.data.specs.small_image_sets import Cifar10, Cifar100, Mnist
from jaxface.data.specs.styled_digits import StyledDigits
from jaxface.data.specs.synthetic_sets import Procedural, ProceduralImages, ShortcutDigits
from jaxface.data.specs.task_canvas_sets import TaskCanvas
from jaxface.data.synthetic.cluttered_digits import cluttered_digits
from jaxface.data.synthetic.crowded_embeddings import CrowdedEmbeddings, crowded_embeddings
from jaxface.data.synthetic.dead_leaves import dead_leaves, moving_leaves, textured_leaves
from jaxface.data.synthetic.digit_canvas import digit_canvas
from jaxface.data.synthetic.distorted_leaves import DISTORTIONS, distort, distorted_leaves
from jaxface.data.synthetic.ellipses import ellipses
from jaxface.data.synthetic.object_scenes import object_scenes
from jaxface.data.synthetic.procedural_images import procedural_images
from jaxface.data.synthetic.procedural_vectors import procedural_vectors
from jaxface.data.synthetic.shortcut_digits import SHORTCUT, shortcut_digits
from jaxface.data.synthetic.textured_digits import textured_digits
from jaxface.data.synthetic.virtual_people import gaussian_people, mixed_people
from jaxface.data.transforms.alignment import (
    TEMPLATES,
    align_face,
    align_faces,
    estimate_similarity,
    five_from_68,
    named_template,
    template,
    umeyama,
    warp_affine,
)
from jaxface.data.transforms.augment import Augment, Augmentation
from jaxface.data.transforms.augment_objects import ObjectAugment, ObjectAugmentation
from jaxface.data.transforms.captioned_views import CaptionViews, CaptionViewSpec
from jaxface.data.transforms.captures import BadCaptures, CaptureNoise, bad_captures
from jaxface.data.transforms.copies import Copies
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS, RgbdCorruption, augment_depth, corrupt_rgbd
from jaxface.data.transforms.label_noise import (
    LabelNoise,
    block_shifts,
    class_dependent_noise,
    draw_labels,
    pairflip_noise,
    symmetric_noise,
    uniform_noise,
)
from jaxface.data.transforms.letterboxing import to_original
from jaxface.data.transforms.policies import apply_operation, cifar10_policy, cut_hole, rand_augment
from jaxface.data.transforms.resolution import (
    LowResolution,
    degrade_resolution,
    low_resolution,
    mirror_some,
    resize_twice,
)
from jaxface.data.transforms.text import Tokenizer, change_caption
from jaxface.data.transforms.views import TeacherStudentTransform, TeacherStudentViews, ViewSpec

__all__ = [
    "DISTORTIONS",
    "KINDS",
    "RGBD_CORRUPTIONS",
    "SHORTCUT",
    "TEMPLATES",
    "AffectNet",
    "AnnotatedPresentations",
    "AnnotatedSource",
    "ArraySource",
    "Augment",
    "Augmentation",
    "BadCaptures",
    "Batches",
    "Bin",
    "BucketOrder",
    "CaptionViewSpec",
    "CaptionViews",
    "CaptionedCanvas",
    "CaptionedFaces",
    "CaptionedPhotographs",
    "CaptionedSource",
    "CaptureNoise",
    "CasiaSurf",
    "Cefa",
    "CelebaSpoof",
    "Cifar10",
    "Cifar100",
    "ClassFolders",
    "ClassUniform",
    "Clothing1m",
    "ClutteredDigits",
    "Coco",
    "Copies",
    "CorruptImage",
    "Crowd",
    "CrowdedEmbeddings",
    "Csiq",
    "Cub200",
    "DataSpec",
    "DeadLeaves",
    "DensePairs",
    "DepthImages",
    "DigitCanvas",
    "DigitHalves",
    "DigitPresentations",
    "Digits",
    "DistortedLeaves",
    "Ellipses",
    "EmbeddingFile",
    "ExpressionSource",
    "Fddb",
    "FerPlus",
    "FewData",
    "Folder",
    "FolderSource",
    "GroupFolders",
    "IRHeader",
    "Ijb",
    "ImageLists",
    "JoinedGroups",
    "Kadid10k",
    "LabelNoise",
    "LabeledImages",
    "Lfw",
    "LfwPatches",
    "LfwSubset",
    "LiveIqa",
    "LongTail",
    "LowResolution",
    "MegaFace",
    "MegaFaceSource",
    "Mnist",
    "MovingLeaves",
    "NoisyLabels",
    "ObjectAugment",
    "ObjectAugmentation",
    "ObjectScenes",
    "Olivetti",
    "OpinionTable",
    "Order",
    "OuluNpu",
    "PackSource",
    "Patches",
    "Presentation",
    "PresentationFiles",
    "PresentationTable",
    "Presentations",
    "Procedural",
    "ProceduralImages",
    "RafDb",
    "RatedFiles",
    "RatedSource",
    "Record",
    "RecordFile",
    "RecordIO",
    "RecordIOFaces",
    "RecordWriter",
    "Relabeled",
    "RenderedExpressions",
    "RenderedFaces",
    "RenderedPresentations",
    "RenderedSource",
    "RgbdCorruption",
    "RgbdFolder",
    "RgbdFolderSource",
    "RgbdImages",
    "SceneSource",
    "SceneVariation",
    "Scenes",
    "Scface",
    "ScfaceSource",
    "ShortcutDigits",
    "Siw",
    "Source",
    "Split",
    "StyledDigits",
    "Subset",
    "SuperclassUniform",
    "TaskCanvas",
    "TaskOrdered",
    "TaskSpec",
    "TeacherStudentTransform",
    "TeacherStudentViews",
    "TemplateSource",
    "TexturedDigits",
    "Tfds",
    "TfdsSource",
    "TinyFace",
    "TinyFaceSource",
    "Tokenizer",
    "TonedFaces",
    "TwoStreams",
    "Variation",
    "VectorSource",
    "ViewSpec",
    "Voc",
    "WiderFace",
    "WithFields",
    "WithSemantics",
    "align_face",
    "align_faces",
    "apply_operation",
    "augment_depth",
    "bad_captures",
    "batches",
    "block_shifts",
    "bucket_evaluation_batches",
    "bucket_order",
    "casia_surf",
    "cefa",
    "change_caption",
    "check_memory",
    "check_tasks",
    "check_unseen_classes",
    "cifar10",
    "cifar10_policy",
    "cifar100",
    "class_dependent_noise",
    "class_means",
    "class_record",
    "cluttered_digits",
    "coco",
    "corrupt_labels",
    "corrupt_rgbd",
    "crowded_embeddings",
    "cut_hole",
    "dead_leaves",
    "decode_depth",
    "decode_image",
    "degrade_resolution",
    "digit_canvas",
    "digits",
    "distort",
    "distorted_leaves",
    "draw_labels",
    "ellipses",
    "encode_depth",
    "encode_image",
    "estimate_similarity",
    "evaluation_batches",
    "exemplar_rows",
    "fddb",
    "fit_square",
    "five_from_68",
    "gaussian_people",
    "labeled_split",
    "lfw_people",
    "lfw_subset",
    "load",
    "load_all",
    "long_tail_counts",
    "low_resolution",
    "majority_votes",
    "mirror_some",
    "mixed_people",
    "mnist",
    "moving_leaves",
    "named_template",
    "nose_depth",
    "object_fields",
    "object_scenes",
    "olivetti",
    "open_packs",
    "pairflip_noise",
    "presentation_table",
    "procedural_images",
    "procedural_vectors",
    "rand_augment",
    "read_bin",
    "read_embeddings",
    "read_idx",
    "redraw_semantics",
    "repeat_factors",
    "repeat_rare_classes",
    "resize_twice",
    "session_source",
    "shortcut_digits",
    "split_identities",
    "stratified_subset",
    "superclasses",
    "symmetric_noise",
    "template",
    "textured_digits",
    "textured_leaves",
    "to_original",
    "umeyama",
    "uniform_noise",
    "voc",
    "warp_affine",
    "wider_face",
    "write_bin",
    "write_record",
]
