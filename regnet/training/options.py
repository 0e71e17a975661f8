"""Options of training."""

from __future__ import annotations

from dataclasses import dataclass

from regnet.options import option


@dataclass(frozen=True)
class AlikeOptions:
    """The similarity term: tiles under photometric change, flips and quarter turns are to be alike to the network."""

    weight: float = option(0.0, "weight of the similarity kC of a tile and what is alike; 0: no such term", low=0)
    pairs: int = option(2, "tiles a step that are paired with what is alike", unit="tiles", low=1)
    parameters: list[str] = option(
        ["describe_*.out.*", "decode.0.*", "heads.0.*"],
        "glob patterns of the parameters to differentiate in: the last layers of either model, since all of them cost "
        "twice the time",
    )


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is fitted to the noisy labels."""

    rounds: int = option(
        1, "trainings one after the other, each on the labels that the one before corrected", low=1, high=20
    )
    trust_px: float = option(
        1.0,
        "a tile keeps its label between rounds where predictions under known shifts differ by more than this (rms)",
        unit="px",
        low=0,
    )
    settled_px: float = option(0.1, "rounds end once the labels move by less than this on average", unit="px", low=0)
    epochs: int = option(6, "passes at the end of which the validation error is measured", low=1)
    steps: int = option(200, "optimiser steps an epoch", low=1)
    batch: int = option(2, "tiles a step: with a given number of tiles, many small steps learn more", low=1)
    learning_rate: float = option(3e-3, "peak of the one-cycle schedule (Adam)", low=1e-6, high=1)
    weight_decay: float = option(1e-4, "decoupled weight decay", low=0, high=1)
    cross_entropy: float = option(1.0, "weight of the cross-entropy of the offset distribution (matcher)", low=0)
    squared: float = option(1.0, "weight of the squared error", unit="1/px^2", low=0)
    segmentation: float = option(0.0, "weight of the auxiliary segmentation of moving's first band (unet)", low=0)
    alike: AlikeOptions = option(AlikeOptions(), "similarity term")
    patience: int = option(
        4, "training stops after so many epochs whose validation error is not within `tolerance` of the least", low=1
    )
    tolerance: float = option(
        0.03,
        "the latest epoch is kept whose validation error is within this share of the least: label noise is most of "
        "that error and hides smaller differences",
        low=0,
        high=1,
    )
    average: float = option(0.98, "decay of the running mean of the weights, a step", low=0, high=0.9999)
    peak_px: float = option(10.0, "greatest random displacement drawn on the fly", unit="px", low=0, high=200)
    shift_px: float = option(3.0, "greatest constant shift drawn beside it, a component", unit="px", low=0, high=200)
    sigma_low_px: float = option(12.0, "roughest random displacement (sigma of its Gaussian)", unit="px", low=1)
    sigma_high_px: float = option(120.0, "smoothest random displacement", unit="px", low=1)
    photometric: float = option(0.2, "spread of random gain and offset a band; 0: none", low=0, high=1)
    flips: bool = option(True, "draw flips and quarter turns")
    familiarity_tiles: int = option(
        48,
        "training tiles whose gradients are summed up at the end, by which register tells how familiar a pair is to "
        "the model; 0: none",
        unit="tiles",
        low=0,
    )
    checkpoints: int = option(5, "checkpoints kept along the training, for the trajectory kernel", low=1, high=100)
    cache_mb: int = option(1024, "memory for tiles kept decoded; beyond it they are read again", unit="MB", low=16)
    seed: int = option(0, "seed of weights, order, displacements and augmentation", low=0)


@dataclass(frozen=True)
class DigitsOptions:
    """A small network that tells handwritten digits apart: images of one class are to be alike to it."""

    weight: float = option(0.3, "weight of the similarity term", low=0)
    pairs: int = option(16, "pairs of one class a step", low=1)
    images: int = option(600, "images trained on; the others of the 1,797 tell the error", low=32, high=1700)
    width: int = option(64, "neurons in each of two hidden layers", low=2)
    epochs: int = option(15, "times that each image is seen", low=1)
    batch: int = option(32, "images a step", low=1)
    learning_rate: float = option(1e-3, "of Adam", low=1e-6, high=1)


@dataclass(frozen=True)
class EnforcedSimilarityOptions:
    """Does the similarity term make training faster? With it and without, from the same starts."""

    seeds: list[int] = option([0, 1, 2], "seeds of the trainings of each kind", low=0)
    weight: float = option(0.3, "weight of the similarity term in the registration network's training", low=0)
    digits: DigitsOptions = option(DigitsOptions(), "the same on handwritten digits")
