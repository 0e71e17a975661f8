"""Settings of the registration methods that people have."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option


@dataclass(frozen=True)
class NetworkOptions:
    """The ImageNet network whose activations are compared."""

    name: str = option("efficientnet_lite0", "the network", choices=["efficientnet_lite0", "vgg16"])
    weights: str | None = option(
        None, "file of vgg16's weights; null: torchvision's are fetched (efficientnet_lite0 comes with its package)"
    )
    convention: str = option(
        "torchvision",
        "input that vgg16's weights want: torchvision (RGB, 0 to 1, standardised), caffe (BGR, 0 to 255, less a mean)",
        choices=["torchvision", "caffe"],
    )


@dataclass(frozen=True)
class PerceptualOptions:
    """Registration by perceptual distance, and the network that both it and the neighbours use."""

    network: NetworkOptions = option(NetworkOptions(), "ImageNet network")
    levels: list[int] = option([8, 4, 2, 1], "reductions of the images, coarse to fine", low=1)
    reach_px: int = option(2, "longest correction at a level, in pixels of that level", unit="px", low=1, high=8)
    window_px: float = option(3.0, "Gaussian over which distances are gathered, of a level", unit="px", low=0)
    smooth_px: float = option(10.0, "Gaussian that smooths the displacement, of a level", unit="px", low=0)


@dataclass(frozen=True)
class PhaseOptions:
    """Phase correlation of overlapping tiles."""

    tile_px: int = option(64, "side of a tile", unit="px", low=8)
    upsample: int = option(20, "shifts are found to 1 / upsample px", low=1, high=1000)
    max_shift_px: float = option(24.0, "a tile with a longer shift is not believed", unit="px", low=0)
    min_valid: float = option(0.5, "a tile with a smaller share of pixels valid in both is left out", low=0, high=1)


@dataclass(frozen=True)
class EccOptions:
    """One affine transform by the enhanced correlation coefficient."""

    iterations: int = option(100, "at most", low=1)
    epsilon: float = option(1e-5, "gain of the coefficient at which it stops", low=0)


@dataclass(frozen=True)
class SiftOptions:
    """One affine transform through SIFT keypoints and RANSAC."""

    ratio: float = option(0.8, "a match must be better than the second best by this factor", low=0.1, high=1)
    threshold_px: float = option(3.0, "RANSAC's distance of an inlier", unit="px", low=0.1)
    min_matches: int = option(6, "fewest inliers that are believed", low=3)


@dataclass(frozen=True)
class KltOptions:
    """Corners tracked there and back."""

    window_px: int = option(31, "side of the window that is tracked", unit="px", low=3)
    corners_per_megapixel: int = option(8000, "at most so many corners", low=1)
    back_px: float = option(1.0, "a corner must come back to within this distance", unit="px", low=0)
    sigma_px: float = option(15.0, "Gaussian by which the points' displacements are spread", unit="px", low=0.5)


@dataclass(frozen=True)
class DisOptions:
    """Dense inverse search flow (OpenCV)."""

    preset: str = option("medium", "how thorough it is, as OpenCV has it", choices=["ultrafast", "fast", "medium"])
    smooth_steps: int = option(
        5, "iterations of the variational refinement, which smooths the flow, at each scale", low=0
    )


@dataclass(frozen=True)
class Tvl1Options:
    """TV-L1 flow (scikit-image)."""

    attachment: float = option(15.0, "weight of the images against the smoothness of the flow", low=0)
    tightness: float = option(0.3, "how close the two parts of the alternating minimisation stay", low=1e-6)
    warps: int = option(5, "times that moving is warped, at each scale", low=1)
    iterations: int = option(10, "of the minimisation, between two warps", low=1)


@dataclass(frozen=True)
class BsplineOptions:
    """Free-form deformation by mutual information (SimpleITK)."""

    knot_px: float = option(64.0, "distance of the splines' knots", unit="px", low=4)
    iterations: int = option(30, "at most, at each level", low=1)
    sample_share: float = option(0.05, "share of the pixels that the metric is estimated from", low=1e-4, high=1)


@dataclass(frozen=True)
class ElastixOptions:
    """Affine transform, then free-form deformation, by mutual information (elastix)."""

    knot_px: float = option(64.0, "distance of the splines' knots", unit="px", low=4)
    iterations: int = option(256, "of the stochastic gradient descent, at each level", low=1)
    samples: int = option(2048, "pixels that the metric is estimated from, drawn anew at every iteration", low=64)


@dataclass(frozen=True)
class BaselineOptions:
    """Settings of the methods that `evaluate` compares with, one section a method (`conf/baseline/`)."""

    perceptual: PerceptualOptions = option(PerceptualOptions(), "perceptual")
    phase: PhaseOptions = option(PhaseOptions(), "classical.phase")
    ecc: EccOptions = option(EccOptions(), "classical.ecc")
    sift: SiftOptions = option(SiftOptions(), "classical.sift")
    klt: KltOptions = option(KltOptions(), "classical.klt")
    dis: DisOptions = option(DisOptions(), "classical.dis")
    tvl1: Tvl1Options = option(Tvl1Options(), "classical.tvl1")
    bspline: BsplineOptions = option(BsplineOptions(), "classical.bspline")
    elastix: ElastixOptions = option(ElastixOptions(), "classical.elastix")
