"""How well the objects that were found match the true ones. Both are label images, int [H, W]: 0 background, objects above.

Labels need not follow on each other. Pixels that nobody labelled are to be 0 in both.
"""

import numpy as np
from scipy.sparse import csr_array
from skimage.measure import shannon_entropy
from skimage.metrics import contingency_table, variation_of_information
from skimage.segmentation import expand_labels

IOUS = np.arange(50, 100, 5) / 100  # from which IoU on an object counts as found: 0.5, 0.55 ... 0.95
AT = ("ap50", "ap60", "ap70", "ap80", "ap90")  # at every second of them: what papers print


def object_scores(truth, found):
    """{"objects": how many there are, "found": how many were found, "ap", "ap50" to "ap90", "f1", "aji", 0..1} of an image.

        AP(t) = TP / (TP + FP + FN)      ap: its mean over t = 0.5, 0.55 ... 0.95; ap50: AP(0.5) ...
        F1    = 2 TP / (2 TP + FP + FN)  at t = 0.5
        AJI   = sum of |T & F(T)| / (sum of |T | F(T)| + pixels of the F that are nobody's)

    TP: pairs of a true and a found object with an IoU above t. Above one half there is no choice: none has two partners.
    FP, FN: the found and the true ones without. The mean of "ap" over the images is the measure of the 2018 Data Science Bowl.
    F(T): the found object of largest IoU with the true T, none if they share nothing. AJI is the aggregated Jaccard index,
    Kumar et al. 2017, IEEE TMI 36, algorithm 1. An image without objects in which none was found scores 1.
    """
    table = contingency_table(truth, found, sparse_type="array").tocoo()  # pixels by (true label, found label)
    real = (table.row > 0) & (table.col > 0)
    true, other, shared = table.row[real], table.col[real], table.data[real]  # [P] each pair of objects that shares pixels
    true_areas, found_areas = table.sum(1), table.sum(0)  # [T + 1], [F + 1] by label; 0 for the background and for gaps
    true_areas[0] = found_areas[0] = 0
    n, m = np.count_nonzero(true_areas), np.count_nonzero(found_areas)
    if n + m == 0:
        return {"objects": 0, "found": 0, "ap": 1.0, **dict.fromkeys(AT, 1.0), "f1": 1.0, "aji": 1.0}
    union = true_areas[true] + found_areas[other] - shared
    hits = (shared / union > IOUS[:, np.newaxis]).sum(1)  # both rounded once: 13 / 20 is not above 65 / 100
    ap = hits / (n + m - hits)
    best = csr_array((shared / union, (true, other)), table.shape)
    chosen = best.argmax(1)[true] == other  # [P] the pair of a true object with its best
    lonely = np.delete(true_areas, true).sum()  # true objects that share nothing
    nobodys = np.delete(found_areas, other[chosen]).sum()
    aji = shared[chosen].sum() / (union[chosen].sum() + lonely + nobodys)
    tens = dict(zip(AT, ap[::2]))
    return {"objects": n, "found": m, "ap": ap.mean(), **tens, "f1": 2 * hits[0] / (n + m), "aji": aji}


def segment_scores(truth, found):
    """{"v_rand", "v_info"}, each 0..1, 1 for equal segments: the measures of the ISBI challenge on membranes of 2012.

    p(i, j): the share of the pixels that are in segment i of `truth` and j of `found`; t(i), f(j): its sums.

        V-Rand = sum p(i, j)^2 / ((sum t(i)^2 + sum f(j)^2) / 2)        V-Info = I(T; F) / ((H(T) + H(F)) / 2)

    Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142, foreground-restricted: of the pixels in true segments
    alone. Segments found are grown until they meet, so that the thickness of a membrane costs nothing, only a gap in it.
    Where there is no true segment both are not a number.
    """
    inside = truth > 0
    if not inside.any():
        return {"v_rand": np.nan, "v_info": np.nan}
    grown = expand_labels(found, sum(found.shape)) if found.any() else found
    segments = truth[inside], grown[inside]
    p = contingency_table(*segments, sparse_type="array")  # in pixels
    v_rand = 2 * (p.data**2).sum() / ((p.sum(0) ** 2).sum() + (p.sum(1) ** 2).sum())
    entropy = sum(map(shannon_entropy, segments))
    v_info = 1 - variation_of_information(*segments).sum() / entropy if entropy else 1.0  # 2 I = H(T) + H(F) - VI
    return {"v_rand": float(v_rand), "v_info": float(v_info)}
