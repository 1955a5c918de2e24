"""The last: the form that a shoe is built on, seen from the side.

The unit is an adult shoe's length: x = -0.5 at the heel, x = 0.5 at the toe, y = 0 on the floor and negative
above it. Heights are measured upwards from the insole, which the heel lifts.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.garments.geometry import Pairs, Points, points

HEEL_HEIGHTS = {
    "Flat": 0.0,
    "Under 1in": 0.06,
    "1in - 1 3/4in": 0.12,
    "2in - 2 3/4in": 0.18,
    "3in - 3 3/4in": 0.245,
    "4in - 4 3/4in": 0.31,
    "5in & over": 0.375,
}
HEEL_FRONT, BALL = -0.24, 0.18  # x at which the raised insole starts to fall, and has fallen
HIGHEST = max(HEEL_HEIGHTS.values())


@dataclass(frozen=True)
class Last:
    """Form of one shoe: heights of heel and sole, lengths of shoe and toe."""

    heel: float
    sole: float
    length: float  # relative to an adult's shoe
    toe: float  # length beyond x = 0.5

    def insole(self, x: np.ndarray | float) -> np.ndarray:
        """Return the height of the insole above the floor."""
        share = np.clip((np.asarray(x, dtype=float) - HEEL_FRONT) / (BALL - HEEL_FRONT), 0.0, 1.0)
        spring = 0.16 * np.maximum(0.0, np.asarray(x, dtype=float) - 0.3) ** 2 / 0.2
        return self.sole + self.heel * (0.5 + 0.5 * np.cos(np.pi * share)) + spring

    def on(self, pairs: Pairs) -> Points:
        """Return points from (x, height above the insole)."""
        given = points(pairs)
        return self.placed(np.stack([given[:, 0], -self.insole(given[:, 0]) - given[:, 1]], axis=1))

    def placed(self, pairs: Pairs) -> Points:
        """Return points from (x, y), stretched towards the toe beyond the ball, then scaled to the length."""
        given = points(pairs).copy()
        given[:, 0] += self.toe * np.clip((given[:, 0] - BALL) / (0.5 - BALL), 0.0, 1.0) ** 2
        given[:, 0] *= self.length
        return given

    def bottom(self) -> Points:
        """Return the insole from heel to toe."""
        x = np.linspace(-0.5, 0.5, 25)
        return self.on(np.stack([x, np.zeros_like(x)], axis=1))

    def outsole(self) -> Points:
        """Return the sole's outline below the insole; under a raised heel it does not touch the floor."""
        x = np.linspace(-0.5, 0.5, 25)
        lower = self.on(np.stack([x, np.full_like(x, -self.sole)], axis=1))
        return np.concatenate([self.bottom(), lower[::-1]])

    def heel_block(self, width: float) -> Points:
        """Return the heel's outline; `width` is the length of its lower end."""
        back = np.array([(-0.5, self.heel), (HEEL_FRONT - 0.02, self.heel), (-0.46 + width, 0.0), (-0.47, 0.0)])
        return self.placed(back * (1.0, -1.0))
