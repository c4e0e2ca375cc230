"""Pure losses: arrays in, per-example losses out.

| name | idea | source |
|---|---|---|
| `sface_loss` | weighted cosines, no normalizer; the weights fade inside safe angles | arXiv:2205.12010 |
| `softmax_loss` | cross-entropy over scaled cosines | arXiv:1704.06369 |
| `cosface_loss` | cosine margin | arXiv:1801.09414 |
| `arcface_loss` | angular margin | arXiv:1801.07698 |
| `Softmax`, `CosFace`, `ArcFace`, `SFace` | the four above with their hyper-parameters, plain or fused; by name in `HEADS` | |
| `Linear` | cross-entropy of a linear classifier's scores, beside them in `HEADS` | |
| `cross_entropy` | over logits, classes sharded or not | |
| `partial_fc_loss` | all of these over sharded prototypes, with sampled negatives; no [B, C] | arXiv:2203.15565 |
| `logexp_distance`, `logexp_loss` | distance of two resolutions of a face, whose push does not vanish at 0 | arXiv:2302.05621 |
| `power_distance` | mean power of the errors: what LogExp is for small ones | |
| `coupleface_loss` | the teacher's direction, and its cosines with the identities most easily confused | arXiv:2204.05502 |
| `mined_relations` | the cosines with those identities (`training.class_banks.mine_neighbors`) | arXiv:2204.05502 |
| `relation_aware_loss` | the difference of two networks' relations | arXiv:2204.05502 |
| `soft_target_loss` | T² KL between tempered softmaxes of teacher and student | arXiv:1503.02531 |
| `hint_loss` | squared distance of a regressed feature to the teacher's | arXiv:1904.09149 |
| `hardness`, `hardness_ratios` | how far a student is from the points of its teacher's route | arXiv:1904.09149 |
| `mimic_loss` | squared distance to the teacher's embedding, or to its direction | |
| `dgd_loss`, `similarity_pattern` | which tokens are alike for a head, as for the teacher; stores no N × N | arXiv:2210.06707 |
| `hard_distillation_loss` | one head learns labels, one the teacher's top classes | arXiv:2012.12877 |
| `correlation_congruence_loss` | the relations between the examples of a batch are the teacher's | arXiv:1904.01802 |
| `gradient_attention`, `attention_score`, `topn_mask`, `erase` | where a network looks, the image without it | arXiv:2304.02284 |
| `adversarial_uniform`, `adversarial_to_reference`, `discriminator_loss` | attention that tells no group | arXiv:2304.02284 |
| `adjacent_correlation_loss` | what RepDistiller benchmarks as correlation congruence | arXiv:1910.10699 |
| `acw_loss` | confidence moves to the modality that favors the right identity | arXiv:2403.06529 |
| `leave_one_out_cosines` | cosines with prototypes that an image had no part in | arXiv:2403.06529 |
| `lid_regression_loss`, `lid_targets` | how crowded the neighborhood of an image is, learned | arXiv:2103.01559 |
| `cell_loss` | weighted binary cross-entropy of what is in which cell | |
| `multibox_loss`, `hard_negatives`, `max_out_background` | a face detector's anchors | arXiv:1905.00641, 1708.05237 |
| `retinanet_loss`, `rpn_loss`, `rcnn_loss` | anchors and regions of general detectors | arXiv:1708.02002, 1506.01497 |
| `pla_assign`, `limit_assigned` | a teacher's predictions choose the proposals of its pseudo boxes | arXiv:2203.16317 |
| `pcv_weights`, `sharpened_weights` | pseudo boxes weighed by the agreement of what finds them | arXiv:2203.16317 |
| `filter_pseudo`, `halve_nearest`, `teacher_momentum` | pseudo boxes, second views and the mean teacher | arXiv:2203.16317 |
| `sigmoid_focal_loss`, `smooth_l1_loss` | their parts | arXiv:1708.02002, 1504.08083 |
| `match_sets`, `detr_match`, `detr_loss` | predictions and objects one to one | arXiv:2005.12872 |
| `yolo_loss`, `decode_yolo`, `cluster_anchors` | a grid of cells that each find the object in them | arXiv:1612.08242 |
| `rank_mimic_loss`, `rank_mimic_box_loss` | an object's anchors are ordered as the teacher orders them | arXiv:2112.04840 |
| `pfi_loss` | features are imitated where the predictions differ | arXiv:2112.04840 |
| `soft_label_loss`, `feature_imitation_loss`, `prediction_imitation_loss` | what these two are compared with | |
| `budget_loss` | the mean work of a batch of images meets a target | arXiv:2209.13802 |
| `sample_features`, `weights_from_action`, `weighted_mean`, `stage_reward` | searched weights of examples | arXiv:1905.11058 |
| `focal_loss`, `self_paced_weights` | rules that are made by hand | arXiv:1708.02002 |
| `lq_loss`, `gaussian_kl`, `masked_label_loss` | labels, some wrong, from codes whose information costs | arXiv:2204.12685 |
| `dq_loss`, `dq_mc_loss`, `quality_variance`, `quality_stats` | a margin is as sure as its image is good | arXiv:2204.12685 |
| `moderated_margin`, `moderated_prob` | the margin of a mean logistic | arXiv:2204.12685 |
| `ncl_pp_loss`, `ncl_loss` | networks, and copies of an image, agree under a long tail | arXiv:2306.16709, 2203.15359 |
| `hard_category_mask`, `partial_cross_entropy`, `pairwise_sym_kl` | their parts | |
| `moco_nce`, `queue_push` | two views of an image against a queue of others | arXiv:1911.05722 |
| `balanced_softmax_loss`, `balanced_logits` | classes of unequal size | arXiv:2007.10740 |
| `ldam_loss`, `effective_number_weights` | larger margins, and later weights, for rare ones | arXiv:1906.07413, 1901.05555 |
| `jocor_loss`, `jocor_scores`, `coteaching_loss` | what two networks find easy is learned | arXiv:2003.02752, 1804.06872 |
| `forget_rate`, `small_loss_count`, `small_loss_mask`, `masked_mean` | their parts | |
| `mda_loss`, `mean_point_loss`, `mirror` | two networks agree; likely right labels count | arXiv:2212.01054 |
| `gan_discriminator_loss`, `gan_generator_loss`, `r1_penalty` | a generator of faces | arXiv:1406.2661, 1801.04406 |
| `child_arch_gradient`, `parent_tangent`, … | a binary network's architecture, pulled along a real one's | arXiv:2306.15390 |
| `ggn_vector_product`, `exact_hessian_vector_product` | curvature of a loss times a vector | |
| `hinge_discriminator_loss`, `hinge_generator_loss` | against a discriminator that need not be sure | arXiv:1705.02894 |
| `clip_infonce`, `declip_loss` | images and their captions, several kinds of supervision | arXiv:2103.00020, 2110.05208 |
| `simsiam_loss`, `mlm_loss`, `pixpro_loss` | their parts: views, words, places | arXiv:2011.10566, 2011.10043 |
| `TextBank`, `nn_bank_lookup`, `nn_bank_push` | the nearest of the last captions | arXiv:2110.05208 |
| `vq_loss`, `adaptive_weight` | an autoencoder of codes, and the weight of its adversary | arXiv:1711.00937, 2012.09841 |
"""

from jaxface.losses.acw import acw_loss, leave_one_out_cosines
from jaxface.losses.adversarial import (
    gan_discriminator_loss,
    gan_generator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
)
from jaxface.losses.cckd import (
    Kernel,
    adjacent_correlation_loss,
    correlation_congruence_loss,
    correlation_matrix,
    taylor_rbf_coeffs,
)
from jaxface.losses.cells import cell_loss
from jaxface.losses.class_features import mined_relations
from jaxface.losses.coupleface import CoupleFaceTerms, coupleface_loss, relation_aware_loss
from jaxface.losses.dcp_nas import (
    ArchitectureGradient,
    child_arch_gradient,
    child_performance,
    dcp_arch_gradient,
    discrepancy,
    exact_hessian_vector_product,
    ggn_vector_product,
    parent_performance,
    parent_tangent,
    reconstruction_loss,
)
from jaxface.losses.detection import (
    DetectionTerms,
    DetrTerms,
    detr_loss,
    detr_match,
    hard_negatives,
    match_sets,
    max_out_background,
    multibox_loss,
    rcnn_loss,
    retinanet_loss,
    rpn_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from jaxface.losses.distillation import mimic_loss, soft_target_loss
from jaxface.losses.dpm import (
    QualityStats,
    SemanticHead,
    dq_loss,
    dq_mc_loss,
    gaussian_kl,
    lq_loss,
    masked_label_loss,
    moderated_margin,
    moderated_prob,
    quality_stats,
    quality_variance,
)
from jaxface.losses.edic import (
    gaussian_bin_prob,
    laplace_bin_prob,
    mixture_bin_logprob,
    mixture_bin_prob,
    rate_bits,
    rd_loss,
)
from jaxface.losses.fmvit import branch_loss
from jaxface.losses.gabn import (
    Attention,
    AttentionKind,
    AttentionScore,
    adversarial_to_reference,
    adversarial_uniform,
    attention_score,
    discriminator_loss,
    erase,
    gradient_attention,
    group_weights,
    topn_mask,
)
from jaxface.losses.heads import HEADS, ArcFace, CosFace, Head, Linear, SFace, Softmax, create_head
from jaxface.losses.ida import lid_regression_loss, lid_targets
from jaxface.losses.image_text import (
    DeclipOutputs,
    DeclipWeights,
    MaskedTokens,
    TextBank,
    clip_infonce,
    declip_loss,
    mask_tokens,
    mlm_loss,
    nn_bank_lookup,
    nn_bank_push,
    pixpro_loss,
    simsiam_loss,
    view_grid,
)
from jaxface.losses.law import (
    focal_loss,
    sample_features,
    self_paced_weights,
    stage_reward,
    stage_steps,
    weighted_mean,
    weights_from_action,
)
from jaxface.losses.lifelong import seen_bce_loss, slice_bce_loss
from jaxface.losses.long_tail import (
    balanced_logits,
    balanced_softmax_loss,
    effective_number_weights,
    ldam_loss,
)
from jaxface.losses.lrfr import logexp_distance, logexp_loss, power_distance
from jaxface.losses.mda import MdaTerms, mda_loss, mean_point_loss, mirror
from jaxface.losses.nclpp import (
    hard_category_mask,
    moco_nce,
    ncl_loss,
    ncl_pp_loss,
    pairwise_sym_kl,
    partial_cross_entropy,
    queue_push,
)
from jaxface.losses.partial_fc import partial_fc_loss, sample_classes, shard_bounds
from jaxface.losses.pseco import (
    filter_pseudo,
    halve_nearest,
    jittered_boxes,
    limit_assigned,
    pcv_weights,
    pla_assign,
    relative_spread,
    reliability_weights,
    sharpened_weights,
    teacher_momentum,
)
from jaxface.losses.qdetr import (
    Distillation,
    Selection,
    drd_loss,
    foreground_mask,
    match_teacher,
    query_distillation_loss,
)
from jaxface.losses.qvit import dgd_loss, hard_distillation_loss, similarity_pattern
from jaxface.losses.rco import hardness, hardness_ratios, hint_loss
from jaxface.losses.rm_pfi import (
    feature_imitation_loss,
    pfi_loss,
    prediction_imitation_loss,
    rank_mimic_box_loss,
    rank_mimic_loss,
    soft_label_loss,
)
from jaxface.losses.sface import sface_loss
from jaxface.losses.small_loss import (
    coteaching_loss,
    forget_rate,
    jocor_loss,
    jocor_scores,
    masked_mean,
    small_loss_count,
    small_loss_mask,
    symmetric_divergence,
)
from jaxface.losses.softmax import arcface_loss, cosface_loss, cross_entropy, margin_logits, softmax_loss
from jaxface.losses.sparsevit import budget_loss
from jaxface.losses.vector_quantization import adaptive_weight, vq_loss
from jaxface.losses.yolo import YoloBoxes, YoloTerms, cluster_anchors, decode_yolo, yolo_loss

__all__ = [
    "HEADS",
    "ArcFace",
    "ArchitectureGradient",
    "Attention",
    "AttentionKind",
    "AttentionScore",
    "CosFace",
    "CoupleFaceTerms",
    "DeclipOutputs",
    "DeclipWeights",
    "DetectionTerms",
    "DetrTerms",
    "Distillation",
    "Head",
    "Kernel",
    "Linear",
    "MaskedTokens",
    "MdaTerms",
    "QualityStats",
    "SFace",
    "Selection",
    "SemanticHead",
    "Softmax",
    "TextBank",
    "YoloBoxes",
    "YoloTerms",
    "acw_loss",
    "adaptive_weight",
    "adjacent_correlation_loss",
    "adversarial_to_reference",
    "adversarial_uniform",
    "arcface_loss",
    "attention_score",
    "balanced_logits",
    "balanced_softmax_loss",
    "branch_loss",
    "budget_loss",
    "cell_loss",
    "child_arch_gradient",
    "child_performance",
    "clip_infonce",
    "cluster_anchors",
    "correlation_congruence_loss",
    "correlation_matrix",
    "cosface_loss",
    "coteaching_loss",
    "coupleface_loss",
    "create_head",
    "cross_entropy",
    "dcp_arch_gradient",
    "declip_loss",
    "decode_yolo",
    "detr_loss",
    "detr_match",
    "dgd_loss",
    "discrepancy",
    "discriminator_loss",
    "dq_loss",
    "dq_mc_loss",
    "drd_loss",
    "effective_number_weights",
    "erase",
    "exact_hessian_vector_product",
    "feature_imitation_loss",
    "filter_pseudo",
    "focal_loss",
    "foreground_mask",
    "forget_rate",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "gaussian_bin_prob",
    "gaussian_kl",
    "ggn_vector_product",
    "gradient_attention",
    "group_weights",
    "halve_nearest",
    "hard_category_mask",
    "hard_distillation_loss",
    "hard_negatives",
    "hardness",
    "hardness_ratios",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "hint_loss",
    "jittered_boxes",
    "jocor_loss",
    "jocor_scores",
    "laplace_bin_prob",
    "ldam_loss",
    "leave_one_out_cosines",
    "lid_regression_loss",
    "lid_targets",
    "limit_assigned",
    "logexp_distance",
    "logexp_loss",
    "lq_loss",
    "margin_logits",
    "mask_tokens",
    "masked_label_loss",
    "masked_mean",
    "match_sets",
    "match_teacher",
    "max_out_background",
    "mda_loss",
    "mean_point_loss",
    "mimic_loss",
    "mined_relations",
    "mirror",
    "mixture_bin_logprob",
    "mixture_bin_prob",
    "mlm_loss",
    "moco_nce",
    "moderated_margin",
    "moderated_prob",
    "multibox_loss",
    "ncl_loss",
    "ncl_pp_loss",
    "nn_bank_lookup",
    "nn_bank_push",
    "pairwise_sym_kl",
    "parent_performance",
    "parent_tangent",
    "partial_cross_entropy",
    "partial_fc_loss",
    "pcv_weights",
    "pfi_loss",
    "pixpro_loss",
    "pla_assign",
    "power_distance",
    "prediction_imitation_loss",
    "quality_stats",
    "quality_variance",
    "query_distillation_loss",
    "queue_push",
    "r1_penalty",
    "rank_mimic_box_loss",
    "rank_mimic_loss",
    "rate_bits",
    "rcnn_loss",
    "rd_loss",
    "reconstruction_loss",
    "relation_aware_loss",
    "relative_spread",
    "reliability_weights",
    "retinanet_loss",
    "rpn_loss",
    "sample_classes",
    "sample_features",
    "seen_bce_loss",
    "self_paced_weights",
    "sface_loss",
    "shard_bounds",
    "sharpened_weights",
    "sigmoid_focal_loss",
    "similarity_pattern",
    "simsiam_loss",
    "slice_bce_loss",
    "small_loss_count",
    "small_loss_mask",
    "smooth_l1_loss",
    "soft_label_loss",
    "soft_target_loss",
    "softmax_loss",
    "stage_reward",
    "stage_steps",
    "symmetric_divergence",
    "taylor_rbf_coeffs",
    "teacher_momentum",
    "topn_mask",
    "view_grid",
    "vq_loss",
    "weighted_mean",
    "weights_from_action",
    "yolo_loss",
]
