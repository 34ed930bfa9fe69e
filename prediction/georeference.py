"""Where on Earth the pixels of a GeoTIFF lie: its tags, which go on to its masks, and what they say of a pixel.

OGC GeoTIFF 1.1 (OGC 19-008r4): annex B has the tags, section 7.1.2.6 GTRasterTypeGeoKey; 42113 is GDAL's.
"""

import contextlib

from data.bands import images_in

import numpy as np

SCALE, TIE_POINT, TRANSFORMATION, KEYS, NO_DATA = 33550, 33922, 34264, 34735, 42113
TAGS = (SCALE, TIE_POINT, TRANSFORMATION, KEYS, 34736, 34737, NO_DATA)  # two of them hold values of the keys
RASTER_TYPE, IS_POINT = 1025, 2  # a key and its value: what is told of a pixel is true of its centre, not of its corner


def read_tags(source):
    """Those `TAGS` of a `prediction.images.Source`, as `tifffile.imwrite` takes them: [] for what is no upright GeoTIFF."""
    if source.path.suffix.lower() not in (".tif", ".tiff"):
        return []
    from tifffile import TiffFile  # takes 0.1 s

    try:
        with TiffFile(source.path) as file:
            tags = file.pages[images_in(source.path)[source.page or 0]].tags  # previews and masks have pages, too
            found = [tags[code] for code in TAGS if code in tags]
            placed = {TIE_POINT, TRANSFORMATION} & {tag.code for tag in found} and tags.valueof("Orientation", 1) == 1
            return [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in found] if placed else []
    except Exception:  # damaged: reading it has the words for that
        return []


def hides(tag, numbers):
    """Whether a tag says that there is no data where a mask or label image [H, W] has a class or an object."""
    with contextlib.suppress(ValueError):  # of a text that is no number
        return tag[0] == NO_DATA and bool(((numbers > 0) & (numbers == float(tag[3].strip(" \0")))).any())
    return False


def map_of_pixels(tags):
    """float64 [2, 3] that makes map coordinates (x, y) of (column, row, 1) of a pixel's centre; None where tags give none."""
    values = {code: np.ravel(value) for code, _, _, value, _ in tags}
    sizes = {code: value.size for code, value in values.items()}
    if sizes.get(TRANSFORMATION) == 16:
        matrix = values[TRANSFORMATION].reshape(4, 4)[:2, [0, 1, 3]].astype(float)
    elif sizes.get(SCALE) == 3 and sizes.get(TIE_POINT) == 6:  # more points are a warp
        (column, row, _, x, y, _), (width, height, _) = values[TIE_POINT], values[SCALE]
        matrix = np.array([[width, 0, x - column * width], [0, -height, y + row * height]])
    else:
        return None
    keys = values.get(KEYS, np.zeros(0))
    if [RASTER_TYPE, 0, 1, IS_POINT] not in keys[: keys.size // 4 * 4].reshape(-1, 4).tolist():
        matrix[:, 2] += matrix[:, :2].sum(1) / 2  # from a pixel's corner to its centre
    return matrix
