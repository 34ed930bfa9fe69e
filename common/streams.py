"""Random numbers: everything that is drawn by chance follows from --seed, and no two things are drawn from the same numbers."""

import numpy as np

WEIGHTS, CELLS, SPLIT, ORDER, AUGMENT = range(5)  # every stream that there is; another one goes to the end


def generator(seed, stream, *numbers):
    """The numpy generator of a stream, or of its part with these numbers: an image, an epoch, or an epoch and an image.

    The stream goes into the spawn key, which numpy keeps apart from the seed. `default_rng((seed, 1))` would not do: numpy
    fills up short seeds with zeros, so that it draws what `default_rng((seed, 1, 0))` draws, and `default_rng(seed)` what
    `default_rng((seed, 0))` draws. Initial weights would be the noise of an image, and the split the order of an epoch.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *numbers)))
