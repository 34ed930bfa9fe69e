"""How far are two arrays apart?"""

import itertools
from typing import NamedTuple

import numpy as np


class Apart(NamedTuple):
    """How far two arrays are apart."""

    difference: float = 0.0  # the largest, absolute; infinite where shapes or not-a-numbers disagree
    scale: float = 1.0  # the largest value of the first
    ulp: int = 0  # that difference in units in the last place
    share: float = 0.0  # of the elements that differ
    where: tuple = ()  # the index of the largest difference

    @property
    def relative(self):
        return self.difference and self.difference / (self.scale or np.finfo(float).tiny)

    def __str__(self):
        return f"{self.relative:.0e}" + f" {self.ulp} ulp" * (self.ulp < 1e4) if self.relative else "0"


def head(pair):
    """Of a column of a table: "low - keras" for "lowlevel - keras_impl"."""
    return pair.replace("lowlevel", "low").replace("highlevel", "high").replace("keras_impl", "keras")[:16]


def ulp_distance(a, b):
    """Units in the last place between two numbers of one float type: how many numbers of that type lie between them."""

    def rank(x):
        integer = int(x.view(f"i{x.dtype.itemsize}"))  # of the bits; it grows with the number, away from zero
        return integer if integer >= 0 else -(2 ** (8 * x.dtype.itemsize - 1)) - integer

    return abs(rank(a) - rank(b))


def distances(x, y):
    """|x - y|, in float64; not a number equals nothing."""
    d = np.abs(x.astype(np.float64) - y.astype(np.float64))
    return np.where(np.isfinite(d), d, np.inf)


def apart(x, y):
    """`Apart` of two arrays of one float type."""
    if x.shape != y.shape:
        return Apart(np.inf)
    d = distances(x, y)
    if not d.any():
        return Apart()
    where = tuple(int(k) for k in np.unravel_index(d.argmax(), d.shape))
    scale = float(np.abs(x.astype(np.float64)).max())
    return Apart(float(d.max()), scale, ulp_distance(x[where], y[where]), np.count_nonzero(d) / d.size, where)


def difference(a, b):
    """(name, largest absolute difference, its ulp) of the name where `a` and `b`, name -> array, differ most."""
    if odd := sorted(a.keys() ^ b.keys()):
        return odd[0], np.inf, 0
    found = {name: apart(np.asarray(a[name]), np.asarray(b[name])) for name in a}
    worst = max(found, key=lambda name: found[name].difference, default="")
    if not worst or not found[worst].difference:
        return "", 0.0, 0
    return worst, found[worst].difference, found[worst].ulp


def differs(x, y, allowed, share=0.0):
    """Whether two arrays differ in shape, or more than a `share` of their values by more than `allowed` times the largest."""
    if x.shape != y.shape or not x.size:
        return x.shape != y.shape
    return not np.quantile(distances(x, y), 1 - share) <= allowed * np.abs(x.astype(np.float64)).max()


def print_by_layer(columns, rows):
    """A row for each name, under its rung. columns: their titles. rows: {(rung, name): [cells, of one more column]}."""
    width = max(len(name) for _, name in rows) + 3
    print(f"{'':<{width}}" + "".join(f"{title:>20}" for title in columns[:-1]) + f"  {columns[-1]}")
    for rung, keys in itertools.groupby(rows, key=lambda key: key[0]):
        print(rung)
        for key in keys:
            *cells, last = rows[key]
            print(f"  {key[1]:<{width - 2}}" + "".join(f"{cell!s:>20}" for cell in cells) + f"  {last}".rstrip(), flush=True)
