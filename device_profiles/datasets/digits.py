"""Handwritten digits, 8x8 grey levels: real data that the package scikit-learn carries.

1,797 images, the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak
1998, UCI Machine Learning Repository, data set 80).
"""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import NDArray

from device_profiles.datasets.dataset import Dataset
from edge_runtime.errors import DataError

LARGEST_GREY = 16.0
TEST_FRACTION = 0.2
# The split is part of the data set, so that accuracies of different experiments compare.
SPLIT_SEED = 20261


def load(path: str | None = None) -> Dataset:
    """Digits as x [n, 64] in 0..1, with a fixed, stratified 80/20 split."""
    if path is not None:
        raise DataError(f"digits: expected no path, got {path}; scikit-learn carries this data set")
    try:
        images = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise DataError(
            "digits: expected the package scikit-learn, which carries them; "
            "install the server's extra: pip install 'flexmoe[server]'"
        ) from None
    x = (images.data / LARGEST_GREY).astype(np.float32)  # (1797, 64)
    y = images.target.astype(np.int64)
    test = _stratified_test_part(y)
    return Dataset(
        name="digits",
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        person_train=None,
        chain_train=None,
        classes=[str(name) for name in images.target_names],
    )


def _stratified_test_part(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which samples [n] are held out: `TEST_FRACTION` of every class, drawn by `SPLIT_SEED`."""
    rng = np.random.default_rng(SPLIT_SEED)
    test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test[members[: round(TEST_FRACTION * len(members))]] = True
    return test
