"""How much label noise a network averaged away, tile by tile, and whether that is true."""

from regnet.denoising.audit import Audit, audit
from regnet.denoising.consistency import neighbour_shift, stationarity_residual
from regnet.denoising.factor import denoising_factor, kernel_mean, spatial_correlation
from regnet.denoising.operators import DenseKernel, FeatureKernel, Operator
from regnet.denoising.smoother import Smoother, choose_smoother, estimate_noise, leave_one_out, smoother
from regnet.denoising.validation import FactorCheck, check_factor, noise_transfer, true_factor

__all__ = [
    "Audit",
    "DenseKernel",
    "FactorCheck",
    "FeatureKernel",
    "Operator",
    "Smoother",
    "audit",
    "check_factor",
    "choose_smoother",
    "denoising_factor",
    "estimate_noise",
    "kernel_mean",
    "leave_one_out",
    "neighbour_shift",
    "noise_transfer",
    "smoother",
    "spatial_correlation",
    "stationarity_residual",
    "true_factor",
]
