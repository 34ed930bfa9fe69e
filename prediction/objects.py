"""Objects out of probabilities: which pixels are one nucleus, one cell, one car, and how that is settled on validation."""

import itertools
from typing import NamedTuple

from prediction.matching import Overlaps, object_scores

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed


class Settings(NamedTuple):
    """What makes an object."""

    threshold: float  # of the probability: pixels from it on are in objects
    neck: float  # 0..1: two parts are two objects if what joins them is less than `neck` times as high as the lower one
    area: int  # objects of fewer pixels are left out


GRID = [(0.4, 0.5, 0.6), (0, 0.6, 0.7, 0.8, 0.9), (0, 0.05, 0.1, 0.2)]  # areas: shares of the median of the true ones


def split_objects(p, threshold, neck):
    """Probabilities [H, W] -> labels int32 [H, W], 1 to n; whatever their area.

    A watershed (Beucher and Lantuejoul 1979) from seeds, on the height of a pixel: its probability times its distance to the
    next pixel that is in no object. A seed is a summit from which every way to a higher one descends below `neck` times its
    height: the same for small and large objects. Pixels are joined by their sides.
    """
    p = np.pad(p, 1)  # an object at the border has a border
    inside = p >= threshold
    if neck == 0:
        return label(inside, connectivity=1)[1:-1, 1:-1].astype(np.int32)
    height = np.full(p.shape, -1e3)
    height[inside] = np.log((distance_transform_edt(inside) * p)[inside])
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    filled = reconstruction(height + np.log(neck), height, footprint=cross)  # every summit cut down to `neck` of its height
    seeds = label(local_maxima(filled, connectivity=1) & inside, connectivity=1)
    return watershed(-height, seeds, mask=inside)[1:-1, 1:-1].astype(np.int32)


def without_small(labels, area):
    """The labels without objects of less than `area` pixels, numbered anew: int32 [H, W], 0 and 1 to n."""
    stay = np.bincount(labels.ravel()) >= max(area, 1)
    stay[0] = False
    return np.where(stay, np.cumsum(stay), 0).astype(np.int32)[labels]


def choose_settings(pairs):
    """The `Settings` of `GRID` with the best mean AP: (settings, {name: mean over the images} of `object_scores`).

    pairs: of validation images, (probabilities [H, W], true labels [H, W]); pixels that nobody labelled are 0 in both.
    """
    areas = [np.bincount(truth.ravel())[1:] for _, truth in pairs]
    areas = np.concatenate([of[of > 0] for of in areas])
    typical = np.median(areas) if len(areas) else 0
    scores = {}
    for threshold, neck in itertools.product(*GRID[:2]):
        overlaps = [Overlaps.of(truth, split_objects(p, threshold, neck)) for p, truth in pairs]
        for share in GRID[2]:
            settings = Settings(threshold, neck, round(share * typical))
            scores[settings] = [object_scores(of.without_small(settings.area)) for of in overlaps]
    best = max(scores, key=lambda settings: np.mean([of["ap"] for of in scores[settings]]))
    return best, {name: float(np.mean([of[name] for of in scores[best]])) for name in scores[best][0]}
