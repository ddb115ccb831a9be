"""Temperature scaling: the one number that makes a network's confidence honest."""

import math

import numpy as np
from numpy.typing import NDArray

LARGEST = 10.0  # and its inverse the smallest: a few images can ask for any


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Return the number by which to divide logits for the smallest loss, with four digits.

    It changes no class, only how confident the network is of it.

    Parameters
    ----------
    logits : array of float32, shape (n, classes)
        Of images that were not trained on.
    labels : array of uint8, shape (n,)

    Notes
    -----
    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar  # here: a training does not wait for it to begin
    from scipy.special import logsumexp

    wide = logits.astype(np.float64)
    margins = wide - wide[np.arange(len(labels)), labels][:, None]

    def loss(log_temperature: float) -> float:
        return float(logsumexp(margins / math.exp(log_temperature), axis=1).mean())

    bound = math.log(LARGEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6})
    return float(f"{math.exp(found.x):.4g}")
