"""Pure evaluation: arrays in, numbers out; nothing here trains, prints or touches a file.

| question | start with |
|---|---|
| how good are these embeddings of a labeled set? | `verify`, `open_set` |
| is it the same person? (pairs) | `ten_fold_accuracy`, `val_at_far`, `tar_at_far`, `auc`, `equal_error_rate` |
| who of a gallery is it? | `rank_k`, `cmc`, `tpir_at_fpir`, `two_gallery_tpir`, `labeled_ranks`, `rank1_by_distance` |
| many images per person | `aggregate_templates`, `template_report` |
| a million distractors | `distractor_rank1`, `distractor_verification`, `megaface_report` |
| faces of few pixels | `gallery_report`, `labeled_average_precision`, `rank1_by_distance` |
| does a mask keep people from being found? | `protection_success` |
| which class is it? | `accuracy`, `top_k_accuracy`, `nearest_prototype_accuracy` |
| are rare classes told as well as frequent ones? | `split_accuracy` |
| do several networks agree? | `disagreement`, `mean_pairwise_divergence` |
| does a selection leave wrong labels out? | `label_selection` |
| which classes are taken for others? | `confusion_matrix`, `mean_class_accuracy`, `macro_f1` |
| does it serve every group alike? | `group_fairness`, `group_accuracy`, `group_verification` |
| where does it look? | `attention_coverage`, `attention_gap`, `attention_mass`, `sensitive_area` |
| where does a transformer look? | `class_attention`, `attention_rollout` |
| what do codes still tell? | `code_entropy`, `codebook_perplexity`, `norm_spread` |
| does a student see the relations that its teacher sees? | `congruence_error` |
| how good are a detector's boxes? | `coco_evaluate`, `voc_evaluate`, `wider_face_evaluate`, `fddb_evaluate` |
| how many pedestrians does it miss? | `log_average_miss_rate` |
| how far is it? | `depth_rmse` |
| do two detectors order an object's anchors alike? | `rank_agreement` |
| how right are a teacher's pseudo boxes? | `pseudo_label_counts` |
| which of two modalities to believe for this pair? | `fuse_scores`, `pair_weight`, `fused_search`, `missing_modality` |
| in which cells is something; which class has each pixel? | `average_precision`, `mean_iou`, `class_iou`, `pixel_confusion` |
| is a confidence right as often as it says? | `reliability_bins`, `expected_calibration_error`, `binary_nll` |
| is it a live face or a photograph, a screen, a mask? | `equal_error_threshold`, `spoof_report`, `apcer`, `bpcer`, `acer` |
| how close is a decoded picture, and at what rate? | `psnr`, `ms_ssim`, `decibels`, `bd_rate`, `bd_psnr` |
| are some people more alike than others? | `local_discrepancy`, `aligned_similarity`, `group_false_accepts` |
"""

from jaxface.metrics.analysis.attention import (
    attention_coverage,
    attention_gap,
    attention_mass,
    attention_rollout,
    class_attention,
    sensitive_area,
)
from jaxface.metrics.analysis.calibration import (
    ReliabilityBins,
    binary_nll,
    expected_calibration_error,
    reliability_bins,
)
from jaxface.metrics.analysis.codes import code_entropy, codebook_perplexity, norm_spread
from jaxface.metrics.analysis.congruence import congruence_error
from jaxface.metrics.analysis.discrepancy import (
    Discrepancy,
    GroupRates,
    adaptive_snorm,
    aligned_similarity,
    discrepancy_weight,
    filter_candidates,
    gallery_similarity,
    group_false_accepts,
    local_discrepancy,
    local_discrepancy_cap,
    mean_pair_cosine,
    pairwise_aligned_similarity,
)
from jaxface.metrics.analysis.fairness import (
    Fairness,
    GroupErrors,
    GroupVerification,
    group_accuracy,
    group_fairness,
    group_verification,
)
from jaxface.metrics.analysis.label_selection import LabelSelection, label_selection
from jaxface.metrics.analysis.protection import protection_success
from jaxface.metrics.continual import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    check_chunks,
    forgetting,
    forward_transfer,
    infer_chunk_tasks,
    learning_accuracy,
)
from jaxface.metrics.depth import depth_rmse
from jaxface.metrics.detection import (
    FddbScores,
    VocScores,
    coco_evaluate,
    fddb_evaluate,
    log_average_miss_rate,
    rank_agreement,
    voc_evaluate,
    wider_face_evaluate,
)
from jaxface.metrics.detection.pseudo_labels import PseudoLabelCounts, pseudo_label_counts
from jaxface.metrics.image import bd_psnr, bd_rate, decibels, ms_ssim, psnr
from jaxface.metrics.recognition.benchmarks import (
    TemplateSearch,
    gallery_report,
    megaface_report,
    refined_probes,
    template_report,
)
from jaxface.metrics.recognition.classification import (
    accuracy,
    confusion_matrix,
    correct_top_k,
    macro_f1,
    mean_class_accuracy,
    nearest_prototype,
    nearest_prototype_accuracy,
    per_class_accuracy,
    top_k_accuracy,
)
from jaxface.metrics.recognition.curves import (
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
from jaxface.metrics.recognition.fusion import (
    RgbdTemplates,
    combine_scores,
    confidence_logit,
    equalize,
    fuse_scores,
    fused_search,
    fused_similarities,
    impostor_spread,
    missing_modality,
    pair_weight,
    rank1,
)
from jaxface.metrics.recognition.identification import (
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
from jaxface.metrics.recognition.long_tail import (
    disagreement,
    mean_pairwise_divergence,
    split_accuracy,
)
from jaxface.metrics.recognition.low_resolution import (
    labeled_average_precision,
    labeled_ranks,
    rank1_by_distance,
)
from jaxface.metrics.recognition.megaface import distractor_rank1, distractor_verification
from jaxface.metrics.recognition.open_set import open_set
from jaxface.metrics.recognition.pairs import Pairs, all_pairs, draw_pairs, make_pairs
from jaxface.metrics.recognition.report import report_scores, verification_scores, verify
from jaxface.metrics.recognition.similarity import (
    Block,
    HistogramTar,
    ScoreHistogram,
    all_pair_similarities,
    pair_similarities,
    similarity_blocks,
    similarity_matrix,
)
from jaxface.metrics.recognition.templates import Templates, aggregate_templates, template_pair_similarities
from jaxface.metrics.recognition.verification import (
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
from jaxface.metrics.segmentation import average_precision, class_iou, mean_iou, pixel_confusion
from jaxface.metrics.spoofing.presentation_attacks import (
    HalfTotalError,
    TprAtFpr,
    acer,
    apcer,
    apcer_by_instrument,
    bpcer,
    bpcer_threshold,
    equal_error_threshold,
    half_total_error,
    presentation_instruments,
    split_presentations,
    spoof_report,
    tpr_at_fpr,
)
from jaxface.metrics.spoofing.spoof_protocols import (
    FoldSummary,
    VideoScores,
    celeba_spoof_tpr,
    leave_one_out,
    video_scores,
)

__all__ = [
    "Block",
    "Discrepancy",
    "EqualError",
    "Fairness",
    "FddbScores",
    "FnmrAtFmr",
    "FoldSummary",
    "GroupErrors",
    "GroupRates",
    "GroupVerification",
    "HalfTotalError",
    "HistogramTar",
    "LabelSelection",
    "MateScores",
    "Pairs",
    "PseudoLabelCounts",
    "ReliabilityBins",
    "RgbdTemplates",
    "Roc",
    "ScoreHistogram",
    "TarAtFar",
    "TemplateSearch",
    "Templates",
    "TenFold",
    "TpirAtFpir",
    "TprAtFpr",
    "TwoGalleries",
    "ValAtFar",
    "VideoScores",
    "VocScores",
    "accuracy",
    "acer",
    "adaptive_snorm",
    "aggregate_templates",
    "aligned_similarity",
    "all_pair_similarities",
    "all_pairs",
    "apcer",
    "apcer_by_instrument",
    "attention_coverage",
    "attention_gap",
    "attention_mass",
    "attention_rollout",
    "auc",
    "average_accuracy",
    "average_incremental_accuracy",
    "average_precision",
    "backward_transfer",
    "bd_psnr",
    "bd_rate",
    "binary_nll",
    "bpcer",
    "bpcer_threshold",
    "celeba_spoof_tpr",
    "check_chunks",
    "class_attention",
    "class_iou",
    "cmc",
    "coco_evaluate",
    "code_entropy",
    "codebook_perplexity",
    "combine_scores",
    "confidence_logit",
    "confusion_matrix",
    "congruence_error",
    "convert_threshold",
    "correct_top_k",
    "cosine_to_squared_l2",
    "decibels",
    "depth_rmse",
    "disagreement",
    "discrepancy_weight",
    "distractor_rank1",
    "distractor_verification",
    "draw_pairs",
    "equal_error_rate",
    "equal_error_threshold",
    "equalize",
    "expected_calibration_error",
    "fddb_evaluate",
    "filter_candidates",
    "flip_embeddings",
    "fnmr_at_fmr",
    "forgetting",
    "forward_transfer",
    "fuse_scores",
    "fused_search",
    "fused_similarities",
    "gallery_report",
    "gallery_similarity",
    "group_accuracy",
    "group_fairness",
    "group_false_accepts",
    "group_verification",
    "half_total_error",
    "impostor_spread",
    "infer_chunk_tasks",
    "label_selection",
    "labeled_average_precision",
    "labeled_ranks",
    "learning_accuracy",
    "leave_one_out",
    "local_discrepancy",
    "local_discrepancy_cap",
    "log_average_miss_rate",
    "macro_f1",
    "make_pairs",
    "mate_scores_above_non_mates",
    "mean_class_accuracy",
    "mean_iou",
    "mean_norm",
    "mean_pair_cosine",
    "mean_pairwise_divergence",
    "megaface_report",
    "missing_modality",
    "ms_ssim",
    "nearest_prototype",
    "nearest_prototype_accuracy",
    "norm_spread",
    "normalize",
    "open_set",
    "pair_similarities",
    "pair_weight",
    "pairwise_aligned_similarity",
    "per_class_accuracy",
    "pixel_confusion",
    "presentation_instruments",
    "protection_success",
    "pseudo_label_counts",
    "psnr",
    "rank1",
    "rank1_by_distance",
    "rank_agreement",
    "rank_k",
    "ranks",
    "refined_probes",
    "reliability_bins",
    "report_scores",
    "roc",
    "sensitive_area",
    "similarity_blocks",
    "similarity_matrix",
    "split_accuracy",
    "split_presentations",
    "spoof_report",
    "squared_l2_to_cosine",
    "tar_at_far",
    "template_pair_similarities",
    "template_report",
    "ten_fold_accuracy",
    "top_k_accuracy",
    "tpir_at_fpir",
    "tpr_at_fpr",
    "two_gallery_tpir",
    "val_at_far",
    "verification_scores",
    "verify",
    "video_scores",
    "voc_evaluate",
    "wider_face_evaluate",
]
