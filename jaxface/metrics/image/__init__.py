"""How alike two images are, what that costs in bits, and how good an image looks without another beside it."""

from jaxface.metrics.image.codebook import Codebook, cornia_features, fit_codebook
from jaxface.metrics.image.counterexamples import (
    jnd_from_trials,
    jnd_proxy,
    robustness_r,
    select_counterexample,
)
from jaxface.metrics.image.fidelity import chebyshev, ssim
from jaxface.metrics.image.filters import gaussian_filter, halve, luma
from jaxface.metrics.image.kernel_regression import (
    KernelRegression,
    LinearRegression,
    fit_kernel_ridge,
    fit_linear_ridge,
    kernel_scores,
    linear_scores,
)
from jaxface.metrics.image.ms_ssim import ms_ssim, psnr
from jaxface.metrics.image.natural_scenes import (
    AsymmetricGaussian,
    NiqeModel,
    aggd_fit,
    brisque_features,
    fit_niqe,
    gaussian_ratio,
    ggd_fit,
    mscn,
    niqe,
    niqe_features,
)
from jaxface.metrics.image.opinion import fit_logistic, krcc, logistic_map, plcc, srcc
from jaxface.metrics.image.perceptual import DistsWeights, LpipsWeights, dists, lpips, random_trunk_weights
from jaxface.metrics.image.rate_distortion import bd_psnr, bd_rate, decibels

__all__ = [
    "AsymmetricGaussian",
    "Codebook",
    "DistsWeights",
    "KernelRegression",
    "LinearRegression",
    "LpipsWeights",
    "NiqeModel",
    "aggd_fit",
    "bd_psnr",
    "bd_rate",
    "brisque_features",
    "chebyshev",
    "cornia_features",
    "decibels",
    "dists",
    "fit_codebook",
    "fit_kernel_ridge",
    "fit_linear_ridge",
    "fit_logistic",
    "fit_niqe",
    "gaussian_filter",
    "gaussian_ratio",
    "ggd_fit",
    "halve",
    "jnd_from_trials",
    "jnd_proxy",
    "kernel_scores",
    "krcc",
    "linear_scores",
    "logistic_map",
    "lpips",
    "luma",
    "ms_ssim",
    "mscn",
    "niqe",
    "niqe_features",
    "plcc",
    "psnr",
    "random_trunk_weights",
    "robustness_r",
    "select_counterexample",
    "srcc",
    "ssim",
]
