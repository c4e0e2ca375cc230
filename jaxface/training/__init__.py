"""State, stages, the loop, parallelism, checkpoints and records of a run."""

# ruff: noqa: E402 - what is missing is named before anything fails for want of it
from jaxface.extras import need

need("train", "cattrs", "matplotlib", "orbax.checkpoint", "rich", "tensorboardX")

from jaxface.training.checkpoints import Checkpoints, checkpoint_steps, restore_metrics, restore_params
from jaxface.training.distributed import start_processes, together
from jaxface.training.evaluations.aligned_verification import (
    AlignedVerification,
    SupportSet,
    fitted_support,
)
from jaxface.training.evaluations.assignment_noise import AssignmentNoise
from jaxface.training.evaluations.cell_precision import CellPrecision
from jaxface.training.evaluations.class_report import ClassReport
from jaxface.training.evaluations.cloak_protection import CloakProtection, CloakTrial, FrozenNetwork
from jaxface.training.evaluations.combined import Evaluations
from jaxface.training.evaluations.continual import Adaptation, ContinualAccuracy
from jaxface.training.evaluations.cross_resolution import CrossResolution, resolution_gradient_norms
from jaxface.training.evaluations.density_gate import DensityGate
from jaxface.training.evaluations.group_attention import AttentiveRecognizer, GroupAttention
from jaxface.training.evaluations.group_fairness import GroupFairness, PackFairness, source_groups
from jaxface.training.evaluations.liveness_confidence import LivenessConfidence
from jaxface.training.evaluations.nearest_prototype import NearestPrototype
from jaxface.training.evaluations.needs import check_spoofing
from jaxface.training.evaluations.object_detection import ObjectDetection
from jaxface.training.evaluations.pair_verification import (
    Verification,
    score_figures,
    verification_figures,
)
from jaxface.training.evaluations.patch_ranking import PatchRanking
from jaxface.training.evaluations.presentation_detection import PresentationDetection, sensor_images
from jaxface.training.evaluations.protocols import PackVerification, check_source, evaluate_source
from jaxface.training.evaluations.rank_agreement import RankAgreement
from jaxface.training.evaluations.rate_distortion import RateDistortion
from jaxface.training.evaluations.rgbd_identification import RgbdIdentification, projected
from jaxface.training.evaluations.route_hardness import RouteHardness
from jaxface.training.evaluations.sign_flips import sign_flips
from jaxface.training.evaluations.token_pruning import TokenPruning
from jaxface.training.evaluations.video_rate_distortion import VideoRateDistortion
from jaxface.training.frozen import Frozen
from jaxface.training.lifelong import MetaFusion, TaskNetwork, joint_step, meta_fusion_step
from jaxface.training.loop import Cadence, Diverged, Interrupted, run
from jaxface.training.map_source import map_source
from jaxface.training.mean_teacher import mean_teacher_step
from jaxface.training.optimizer import Optimizer, adam, decay_mask, sgd
from jaxface.training.parallel import JitParallel, Mode, PmapParallel, Shard, check_batch_size, make_parallel
from jaxface.training.prototypes import prototype_loss, prototype_rows
from jaxface.training.recognition import (
    Recognizer,
    backbone_checkpoint,
    check_backbone,
    class_scores,
    embed_source,
    embed_templates,
    network_variables,
    run_checkpoint,
    statistics,
)
from jaxface.training.records import Records, read_records
from jaxface.training.rgbd import (
    RgbdClasses,
    RgbdFeatures,
    RgbdNetworks,
    RgbdPairs,
    with_depth_noise,
)
from jaxface.training.route import (
    Anchor,
    Route,
    batches_from,
    check_same_network,
    check_steps,
    cut_stage,
    equal_epoch_anchors,
    greedy_next_anchor,
    run_anchors,
)
from jaxface.training.stages import Figures, Outcome, Stage, no_figures
from jaxface.training.step import Objective, TrainState, create_state, example_keys, gradient_step
from jaxface.training.teachers import Teacher
from jaxface.training.trace import ProfiledSteps
from jaxface.training.workdir import (
    check_workdir,
    give_up_workdir,
    open_workdir,
    read_config,
    read_description,
    write_atomically,
    write_description,
)
from jaxface.training.writers import Tracking

__all__ = [
    "Adaptation",
    "AlignedVerification",
    "Anchor",
    "AssignmentNoise",
    "AttentiveRecognizer",
    "Cadence",
    "CellPrecision",
    "Checkpoints",
    "ClassReport",
    "CloakProtection",
    "CloakTrial",
    "ContinualAccuracy",
    "CrossResolution",
    "DensityGate",
    "Diverged",
    "Evaluations",
    "Figures",
    "Frozen",
    "FrozenNetwork",
    "GroupAttention",
    "GroupFairness",
    "Interrupted",
    "JitParallel",
    "LivenessConfidence",
    "MetaFusion",
    "Mode",
    "NearestPrototype",
    "ObjectDetection",
    "Objective",
    "Optimizer",
    "Outcome",
    "PackFairness",
    "PackVerification",
    "PatchRanking",
    "PmapParallel",
    "PresentationDetection",
    "ProfiledSteps",
    "RankAgreement",
    "RateDistortion",
    "Recognizer",
    "Records",
    "RgbdClasses",
    "RgbdFeatures",
    "RgbdIdentification",
    "RgbdNetworks",
    "RgbdPairs",
    "Route",
    "RouteHardness",
    "Shard",
    "Stage",
    "SupportSet",
    "TaskNetwork",
    "Teacher",
    "TokenPruning",
    "Tracking",
    "TrainState",
    "Verification",
    "VideoRateDistortion",
    "adam",
    "backbone_checkpoint",
    "batches_from",
    "check_backbone",
    "check_batch_size",
    "check_same_network",
    "check_source",
    "check_spoofing",
    "check_steps",
    "check_workdir",
    "checkpoint_steps",
    "class_scores",
    "create_state",
    "cut_stage",
    "decay_mask",
    "embed_source",
    "embed_templates",
    "equal_epoch_anchors",
    "evaluate_source",
    "example_keys",
    "fitted_support",
    "give_up_workdir",
    "gradient_step",
    "greedy_next_anchor",
    "joint_step",
    "make_parallel",
    "map_source",
    "mean_teacher_step",
    "meta_fusion_step",
    "network_variables",
    "no_figures",
    "open_workdir",
    "projected",
    "prototype_loss",
    "prototype_rows",
    "read_config",
    "read_description",
    "read_records",
    "resolution_gradient_norms",
    "restore_metrics",
    "restore_params",
    "run",
    "run_anchors",
    "run_checkpoint",
    "score_figures",
    "sensor_images",
    "sgd",
    "sign_flips",
    "source_groups",
    "start_processes",
    "statistics",
    "together",
    "verification_figures",
    "with_depth_noise",
    "write_atomically",
    "write_description",
]
