"""A predicted factor set right by a few more trainings, which need no truth, and how far off it may still be.

A smoother tells tiles apart, but says too little of the noise as a whole: noise also moves the kernels along which the
training goes. Training K times more, each on the labels with noise drawn once more on top, shows what noise of known
size does to a training that has the truth in its labels. (Around its own predictions, as in the parametric bootstrap of
Efron 1979, there is nothing to learn, and it responds to noise as it never does.) The smoother is made of the mean of
the kernels of all trainings, in which what one draw did to its own kernel fades. Two numbers then set its factors
right, the same for all tiles: the odds of the variance that is left, `f^2 / (1 - f^2)`, are raised to a power and
multiplied by a ratio. A ridge's shares of its labels obey a ratio when its strength changes, and no prediction keeps
more noise than its label has. The power is needed because the smoother errs about single tiles: those that it takes for
the noisiest are so less often than it says, as in any regression on a predictor with errors of its own. The numbers are
those by which the smoother foretells best, in least squares, for the very draws of the retrainings, the factors seen in
them; what is particular to the draws then counts on both sides. Single tiles' factors are not corrected: seen K times
they are too uncertain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import least_squares

from regnet.denoising.operators import Array
from regnet.denoising.validation import halvings, true_factor

Pool = Callable[[Array], Array]
"""Makes factors of regions from factors (n,) of tiles."""

LEAST_RETRAININGS = 4
"""Two in each half are needed to tell the model's error from chance."""
_LEAST, _MOST = (-10.0, 0.2), (10.0, 2.0)  # range of the ratio's logarithm and of the power
_START = (0.0, 1.0)


@dataclass(frozen=True)
class Odds:
    """What is done to the odds of factors: `o -> ratio * o^power`."""

    ratio: float = 1.0
    power: float = 1.0

    def __call__(self, factor: Array) -> Array:
        """Change factors; they are at most 1 before and after."""
        squared = np.minimum(factor, 1.0) ** 2
        kept, lost = self.ratio * squared**self.power, (1 - squared) ** self.power
        result: Array = np.sqrt(kept / (kept + lost))
        return result


@dataclass(frozen=True)
class Retrainings:
    """K more trainings of the same tiles on labels with more noise.

    Attributes:
        noise: (K, n, d) px, what was added to the labels.
        predictions: (K, n, d) px after training.
    """

    noise: Array
    predictions: Array

    def __len__(self) -> int:
        return len(self.noise)

    def take(self, chosen: Array | slice) -> Retrainings:
        """Some of them."""
        return Retrainings(self.noise[chosen], self.predictions[chosen])

    def spread(self) -> Array:
        """Standard deviation of every prediction over that of the noise, (n,)."""
        return true_factor(self.predictions, self.noise)


@dataclass(frozen=True)
class Calibration:
    """A predicted factor and the retrainings that set it right.

    Attributes:
        predicted: (n,) as the smoother predicts.
        seen: the retrainings.
        foretold: (K, n, d) px, what the smoother makes of their noise.
    """

    predicted: Array
    seen: Retrainings
    foretold: Array

    @cached_property
    def odds(self) -> Odds:
        """What sets the factors right."""
        return self._fitted(np.arange(len(self.seen)))

    @property
    def factor(self) -> Array:
        """Set right, (n,)."""
        return self.odds(self.predicted)

    def error(self, pool: Pool | None = None) -> Array:
        """Standard deviation of the logarithm of the true factor over `factor`, by tile or by region.

        It has two parts. The odds would be changed otherwise with other retrainings: jackknife. And the smoother
        is wrong about single tiles: halves of the retrainings are off from it independently but for that, so that its
        variance is the covariance of the two, over tiles, of the logarithms of seen over predicted.

        Args:
            pool: by region; None: by tile.

        Returns:
            (n,) or (regions,); NaN where nothing moves the predictions.
        """
        places, pooled = np.arange(len(self.seen)), pool or (lambda factor: factor)
        known = (pooled(self.predicted) > 0) & (pooled(self.seen.spread()) > 0)

        def logs(factor: Array) -> Array:
            result: Array = np.log(pooled(factor)[known])
            return result

        rest = [self._fitted(np.delete(places, place)) for place in places]
        chance = (len(places) - 1) * np.var([logs(odds(self.predicted)) for odds in rest], axis=0)
        base = logs(self.factor)
        model = 0.0
        if known.sum() > 1:
            halves = [[logs(self.seen.take(half).spread()) - base for half in two] for two in halvings(len(places))]
            model = float(np.mean([np.cov(np.stack(two))[0, 1] for two in halves]))
        result = np.full(known.shape, np.nan)
        result[known] = np.sqrt(chance + max(model, 0.0))
        return result

    def _fitted(self, chosen: Array) -> Odds:
        """What brings the factors foretold for some of the retrainings closest to those seen in them."""
        seen = self.seen.take(chosen).spread()
        foretold = true_factor(self.foretold[chosen], self.seen.noise[chosen])
        found = least_squares(
            lambda numbers: Odds(np.exp(numbers[0]), numbers[1])(foretold) - seen, _START, bounds=(_LEAST, _MOST)
        )
        return Odds(float(np.exp(found.x[0])), float(found.x[1]))
