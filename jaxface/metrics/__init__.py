"""Pure evaluation: arrays in, numbers out; nothing here trains, prints or touches a file.

| question | start with |
|---|---|
| how good are these embeddings of a labelled set? | `verify` |
| is it the same person? (pairs) | `ten_fold_accuracy`, `val_at_far`, `tar_at_far`, `auc`, `equal_error_rate`
| | who of a gallery is it? | `rank_k`, `cmc`, `tpir_at_fpir`, `two_gallery_tpir` |
| many images per person | `aggregate_templates` |
| a million distractors | `distractor_rank1`, `distractor_verification` |
| which class is it? | `accuracy`, `top_k_accuracy`, `nearest_prototype_accuracy`, `confusion_matrix` |
"""

from jaxface.metrics.classification import (
    accuracy,
    confusion_matrix,
    correct_top_k,
    nearest_prototype,
    nearest_prototype_accuracy,
    per_class_accuracy,
    top_k_accuracy,
)
from jaxface.metrics.curves import (
    EqualError,
    FnmrAtFmr,
    Roc,
    TarAtFar,
    auc,
    equal_error_rate,
    fnmr_at_fmr,
    roc,
    tar_at_far,
)
from jaxface.metrics.identification import (
    MateScores,
    TpirAtFpir,
    TwoGalleries,
    cmc,
    mate_scores_above_non_mates,
    rank_k,
    ranks,
    tpir_at_fpir,
    two_gallery_tpir,
)
from jaxface.metrics.megaface import distractor_rank1, distractor_verification
from jaxface.metrics.pairs import Pairs, all_pairs, make_pairs
from jaxface.metrics.recognition import verification_scores, verify
from jaxface.metrics.similarity import (
    Block,
    HistogramTar,
    ScoreHistogram,
    all_pair_similarities,
    pair_similarities,
    similarity_blocks,
    similarity_matrix,
)
from jaxface.metrics.templates import Templates, aggregate_templates, template_pair_similarities
from jaxface.metrics.verification import (
    TenFold,
    ValAtFar,
    convert_threshold,
    cosine_to_squared_l2,
    flip_embeddings,
    mean_norm,
    normalize,
    squared_l2_to_cosine,
    ten_fold_accuracy,
    val_at_far,
)

__all__ = [
    "Block",
    "EqualError",
    "FnmrAtFmr",
    "HistogramTar",
    "MateScores",
    "Pairs",
    "Roc",
    "ScoreHistogram",
    "TarAtFar",
    "Templates",
    "TenFold",
    "TpirAtFpir",
    "TwoGalleries",
    "ValAtFar",
    "accuracy",
    "aggregate_templates",
    "all_pair_similarities",
    "all_pairs",
    "auc",
    "cmc",
    "confusion_matrix",
    "convert_threshold",
    "correct_top_k",
    "cosine_to_squared_l2",
    "distractor_rank1",
    "distractor_verification",
    "equal_error_rate",
    "flip_embeddings",
    "fnmr_at_fmr",
    "make_pairs",
    "mate_scores_above_non_mates",
    "mean_norm",
    "nearest_prototype",
    "nearest_prototype_accuracy",
    "normalize",
    "pair_similarities",
    "per_class_accuracy",
    "rank_k",
    "ranks",
    "roc",
    "similarity_blocks",
    "similarity_matrix",
    "squared_l2_to_cosine",
    "tar_at_far",
    "template_pair_similarities",
    "ten_fold_accuracy",
    "top_k_accuracy",
    "tpir_at_fpir",
    "two_gallery_tpir",
    "val_at_far",
    "verification_scores",
    "verify",
]
