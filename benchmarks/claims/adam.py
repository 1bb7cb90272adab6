"""Training with NumPy alone: Adam (Kingma and Ba 2015, arXiv:1412.6980)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Adam:
    """Changes parameters in place, by their gradients, whose norm over all of them is clipped."""

    def __init__(self, parameters: Mapping[str, Array], *, rate: float = 1e-3, beta_1: float = 0.9,
                 beta_2: float = 0.999, epsilon: float = 1e-8, clip: float = 1.0) -> None:  # fmt: skip
        self.parameters, self.rate, self.clip = dict(parameters), rate, clip
        self._betas, self._epsilon, self._steps = (beta_1, beta_2), epsilon, 0
        self._mean = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        self._square = {name: np.zeros_like(value) for name, value in self.parameters.items()}

    def step(self, grads: Mapping[str, Array]) -> float:
        """One step; returns the norm of the gradients."""
        self._steps += 1
        beta_1, beta_2 = self._betas
        norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values())))
        factor = min(1.0, self.clip / norm) if norm > 0 else 1.0
        size = self.rate * np.sqrt(1 - beta_2**self._steps) / (1 - beta_1**self._steps)
        for name, parameter in self.parameters.items():
            gradient, mean, square = factor * grads[name], self._mean[name], self._square[name]
            mean += (1 - beta_1) * (gradient - mean)
            square += (1 - beta_2) * (gradient * gradient - square)
            parameter[...] -= size * mean / (np.sqrt(square) + self._epsilon)
        return norm
