"""How alike two images are, and what that costs in bits."""

from jaxface.metrics.image.ms_ssim import ms_ssim, psnr
from jaxface.metrics.image.rate_distortion import bd_psnr, bd_rate, decibels

__all__ = ["bd_psnr", "bd_rate", "decibels", "ms_ssim", "psnr"]
