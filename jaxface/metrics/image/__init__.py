"""How alike two images are, what that costs in bits, and how good an image looks without another beside it."""

from jaxface.metrics.image.counterexamples import (
    jnd_from_trials,
    jnd_proxy,
    robustness_r,
    select_counterexample,
)
from jaxface.metrics.image.fidelity import chebyshev, ssim
from jaxface.metrics.image.filters import gaussian_filter, halve, luma
from jaxface.metrics.image.kernel_regression import KernelRegression, fit_kernel_ridge, kernel_scores
from jaxface.metrics.image.ms_ssim import ms_ssim, psnr
from jaxface.metrics.image.natural_scenes import (
    AsymmetricGaussian,
    aggd_fit,
    brisque_features,
    gaussian_ratio,
    ggd_fit,
    mscn,
)
from jaxface.metrics.image.opinion import fit_logistic, krcc, logistic_map, plcc, srcc
from jaxface.metrics.image.rate_distortion import bd_psnr, bd_rate, decibels

__all__ = [
    "AsymmetricGaussian",
    "KernelRegression",
    "aggd_fit",
    "bd_psnr",
    "bd_rate",
    "brisque_features",
    "chebyshev",
    "decibels",
    "fit_kernel_ridge",
    "fit_logistic",
    "gaussian_filter",
    "gaussian_ratio",
    "ggd_fit",
    "halve",
    "jnd_from_trials",
    "jnd_proxy",
    "kernel_scores",
    "krcc",
    "logistic_map",
    "luma",
    "ms_ssim",
    "mscn",
    "plcc",
    "psnr",
    "robustness_r",
    "select_counterexample",
    "srcc",
    "ssim",
]
