"""Changes to a training image that leave it a possible image, done to image and mask alike.

Ronneberger et al. 2015, section 3.1, on what little data asks for: shifts, rotations, changes of gray values, and above all
elastic deformations. Their ranges are not in the paper, but for the deformations; those here are modest.

Su et al. 2023, "Rethinking data augmentation for single-source domain generalization in medical image segmentation"
(arXiv 2211.14805), on images that look unlike all those to train on: every class gets random tone curves of its own, so that
its colour tells nothing about it, and its outline all. Random appearance for a world that is not known: Tobin et al. 2017,
arXiv 1703.06907.

Photographs show things near and far, by all kinds of cameras: hence scales of 0.5 to 2, as Chen et al. 2016 have them (arXiv
1606.00915), other hue and saturation, as Liu et al. 2016 (arXiv 1512.02325), another exposure, and some that are not sharp.
"""

import functools

from data.files import look_up, to_gray
from data.meaning import as_classes

import cv2
import numpy as np

cv2.setNumThreads(1)  # the loader draws a batch on each core
SCALE = 1.25  # at most so many times larger or smaller
CONTRAST = 4 / 3  # at most so many times stronger or weaker
BRIGHTNESS = 0.1  # at most so much lighter or darker, of the range from black to white
ELASTIC = 10.0  # pixels, standard deviation of the displacements: the paper's
NODES = 3  # the displacements lie on a grid of 3x3, as in the paper
TILT = np.pi / 18  # at most, of elastic, photo, recolor: photographs have a top and a bottom
ZOOM = 2.0  # photo: in the place of SCALE
HUE = np.pi / 10  # photo: at most so far around the circle of colours
SATURATION = (0.5, 1.5)  # photo
EXPOSURE = 2.0  # photo: v, from 0 to 1, becomes v**gamma, for a gamma between 1 / EXPOSURE and EXPOSURE
BLUR = 1.0  # photo: pixels, the largest standard deviation; half of the images stay sharp
RECOLOR = 0.5  # share of the regions that get other colours
GRAY = 0.25  # share of the colour images that turn gray before, so that the curves alone give them colour
CUT = 0.5  # share of the images that are cut in two before
FLIPS = ((None, 1), (0, -1), (-1, 0), (1, None))  # OpenCV's codes for so many right angles, as they are and mirrored
REACH = 2  # as many times as large as the window is what is recoloured
KNOTS = 4  # a tone curve is a line through so many random values
GAMMA = 4.0  # the knots of a curve lie evenly on the scale of v**gamma, for a gamma between 1 / GAMMA and GAMMA
TINT = 32.0  # gray values, standard deviation between the curves of the channels


def augment(image, mask, size, kind, rng, white=255):
    """A training example out of an image, by `kind`, the option --augment.

    none: a random crop. flips: and one of the symmetries of a square. paper: what `deform` does, mirrored beyond the borders.
    elastic: the same, but tilted by `TILT` at most and never a mirror image, for images whose directions mean something.
    photo: as elastic, but a mirror image half of the time, nearer or further by `ZOOM`, and by `another_camera`.
    recolor: as elastic, but a mirror image half of the time, and half of the regions of the mask in other colours.

    Args:
        image, mask: uint8 or uint16 [H, W, C], 0 to `white`, and uint8 [H, W], or int32 where it numbers objects.
        size: (height, width) of the crop, no larger than the image.

    Returns: image, [height, width, C], and mask, [height, width], of their types; the values of the mask all occur in `mask`.
        Both may be views.

    Raises: ValueError when the crop is larger than the image.
    """
    if kind in ("none", "flips"):
        image, mask = random_crop(image, mask, size, rng)
        return flips(image, mask, rng) if kind == "flips" else (image, mask)
    if kind == "recolor":
        # Before the sampling, which then blends the pixels along an outline as a camera does. Of a large image only the part
        # around the window: all of 1918x1280 would take 60 ms.
        image, mask = random_crop(image, mask, [min(REACH * n, limit) for n, limit in zip(size, mask.shape)], rng)
        image = recolor(image, as_classes(mask), rng, white)
    angles, mirrors = (0, 2 * np.pi) if kind == "paper" else (-TILT, TILT), (1,) if kind == "elastic" else (-1, 1)
    image, mask = deform(image, mask, size, rng, angles, mirrors, ZOOM if kind == "photo" else SCALE, white)
    return (another_camera(image, rng, white) if kind == "photo" else image), mask


def random_crop(image, mask, size, rng):
    """A window of `size` (height, width): image [H, W, C], mask [H, W] -> views [height, width, C] and [height, width].

    Raises: ValueError when the window is larger than the image.
    """
    (height, width), (h, w) = mask.shape, size
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return image[top : top + h, left : left + w], mask[top : top + h, left : left + w]


def flips(image, mask, rng):
    """One of the symmetries of a square: image [H, W, C], mask [H, W] -> the same shapes, all equally likely.

    A square has 8: four right-angle rotations, each as it is or mirrored. Of these only 4 keep the shape of an image that
    is not square (mirrored in x, in y, in both, in neither), and only those are drawn for it: a batch has one shape.
    """
    turns, mirrored = rng.integers(4) if image.shape[0] == image.shape[1] else 2 * rng.integers(2), rng.integers(2)
    return tuple(_turned(values, turns, mirrored) for values in (image, mask))


def _turned(values, turns, mirrored):
    """[H, W] or [H, W, C], so many right angles against the clock, then mirrored or not: transposed if odd, flipped once."""
    shape = (values.shape[1::-1] if turns % 2 else values.shape[:2]) + values.shape[2:]  # a single channel would be left out
    if turns % 2:  # OpenCV turns no pixels of 5, 7, 9 bytes, ...
        values = cv2.transpose(values) if values[0, 0].nbytes <= 4 else np.ascontiguousarray(values.swapaxes(0, 1))
    code = FLIPS[turns][mirrored]
    return (values if code is None else cv2.flip(values, code)).reshape(shape)  # NumPy's views are five times as slow to read


def deform(image, mask, size, rng, angles, mirrors, zoom=SCALE, white=255):
    """A window at a random place, mirrored or not, rotated, scaled, elastically deformed, its light changed.

    Arguments, results and errors as in `augment`, and `angles`, the least and the largest, `mirrors`, one of which multiplies
    the x axis, and `zoom`, the largest factor. Image and mask are sampled once: nothing is blurred twice.
    """
    (height, width), (h, w) = mask.shape, size
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    angle, scale = rng.uniform(*angles), zoom ** rng.uniform(-1, 1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 1] *= rng.choice(mirrors)
    # a large window is moved inside as far as the image reaches: what lies beyond is a mirror image, and no street
    reach = np.minimum(mask.shape, np.multiply(size, scale)) / 2
    centre = np.clip((top + (h - 1) / 2, left + (w - 1) / 2), reach - 0.5, mask.shape - reach - 0.5)
    nodes = node_grid(size, turn, centre) + displacements(size, rng)
    contrast, brightness = CONTRAST ** rng.uniform(-1, 1), white * rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    # contrast about the mean, for which every fourth row and column is enough: about gray it would turn dark images black; and
    # so it would bands that are darker than others, but for those of a colour, which keep their ratio
    part = image[top : top + h : 4, left : left + w : 4]
    mean = part.mean() if image.shape[-1] in (1, 3) else part.mean(axis=(0, 1))
    return sample(image, mask, size, nodes, contrast, brightness + mean * (1 - contrast), white)


def another_camera(image, rng, white=255):
    """Another exposure, hue and saturation, these of three bands, and half of the time less sharp: [H, W, C] -> the same.

    Exposure makes dusk of day and day of dusk: black and white stay. Hue and saturation keep grays: hue turns colours around
    the gray axis of the cube of RGB, saturation is the distance from it.
    """
    values, kind = image, image.dtype
    if image.shape[-1] == 3:
        angle, saturation, gray = rng.uniform(-HUE, HUE), rng.uniform(*SATURATION), np.full((3, 3), 1 / 3)
        across = np.float64([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # at right angles to the colour and to gray
        turned = gray + saturation * (np.cos(angle) * (np.eye(3) - gray) + np.sin(angle) * across)
        values = cv2.transform(values, turned)  # rounds, and cuts off at what its type holds
    exposed = (white * np.linspace(0, 1, white + 1) ** EXPOSURE ** rng.uniform(-1, 1)).round()
    values = look_up(np.broadcast_to(exposed, (image.shape[-1], white + 1)), np.minimum(values, white).astype(kind, copy=False))
    if rng.random() < 0.5:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.1, BLUR)).reshape(image.shape)
    return values


def recolor(image, mask, rng, white=255):
    """Half of the regions of an image in other colours: [H, W, C], 0 to `white`, and mask, uint8 [H, W] -> [H, W, C].

    A region is all pixels of one value of the mask, VOID too. Half of the images are cut in two by a random line, and the
    parts of such a region are regions of their own: or else every edge between two colours would be an outline, and letters
    on the wall behind a car would be taken for the car. Every band has a curve of its own, near that of the others; only images
    of three bands, which have a gray, lose their colour before.
    """
    channels = image.shape[-1]
    if channels == 3 and rng.random() < GRAY:
        image = np.repeat(to_gray(image), 3, axis=-1)
    part = random_part(mask.shape, rng) if rng.random() < CUT else np.ones(mask.shape, bool)
    recolored = np.array(image, order="C")
    for value in np.flatnonzero(np.bincount(mask.ravel())):
        for region in (mask == value) & part, (mask == value) & ~part:
            if rng.random() < RECOLOR:
                other = look_up(tone_curves(channels, rng, white), image)
                cv2.copyTo(other, region.view(np.uint8), recolored)
    return recolored


def random_part(size, rng):
    """A part of a window of `size` (height, width) with smooth borders, about half of it: bool [height, width]."""
    h, w = size
    return spline(h) @ rng.standard_normal((NODES, NODES), np.float32) @ spline(w).T > 0


def tone_curves(channels, rng, white=255):
    """What the values 0 to `white` become in every channel, by chance: float [channels, white + 1], 0 to `white`.

    Before the tint, half of the curves rise all the way or fall all the way, which turns light and dark around; the others
    may bend: dark paint between light windows becomes light paint between dark windows only by a curve that bends.
    """
    knots = rng.uniform(0, 255, KNOTS)
    if rng.random() < 0.5:
        knots = np.sort(knots)[:: rng.choice((-1, 1))]
    knots = (knots + rng.normal(0, TINT, (channels, KNOTS))).clip(0, 255)
    gamma = GAMMA ** rng.uniform(-1, 1)
    place = (KNOTS - 1) * np.linspace(0, 1, white + 1) ** gamma  # 0 to white on the scale on which the knots are 0, 1, 2, 3
    return np.stack([np.interp(place, np.arange(KNOTS), curve) for curve in knots]) * (white / 255)


def node_grid(size, turn, centre):
    """Where the nodes of the grid over a window of `size` lie in the image: rows and columns, float [2, 3, 3], in pixels.

    turn: [2, 2], from positions in the window to positions in the image, both seen from the window's centre.
    """
    rows, columns = (np.linspace(-(n - 1) / 2, (n - 1) / 2, NODES) for n in size)
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))  # [2, 3, 3]
    return np.tensordot(turn, grid, 1) + np.reshape(centre, (2, 1, 1))


def displacements(size, rng):
    """Random displacements of the nodes, float [2, 3, 3], in pixels.

    The paper's standard deviation of 10 pixels is for tiles of 512. It would fold small windows over, so below 120 pixels it
    shrinks with them.
    """
    return rng.normal(0, min(ELASTIC, min(size) / 12), (2, NODES, NODES))


@functools.cache
def spline(n):
    """The cubic spline through the nodes at n pixels, float32 [n, 3]: every row holds the weights of the three nodes.

    A natural spline. It keeps straight lines straight, so the nodes can carry the rotation and the scale as well.
    """
    from scipy.interpolate import CubicSpline  # takes half a second, which not every training needs

    return CubicSpline(np.linspace(0, n - 1, NODES), np.eye(NODES), bc_type="natural")(np.arange(n)).astype(np.float32)


def sample(image, mask, size, nodes, contrast=1.0, brightness=0.0, white=255):
    """Looks up a window of `size`: the image bilinear, the mask nearest, both mirrored beyond their borders.

    By OpenCV, whose `remap` rounds positions to 1/32 of a pixel, and lets other threads run Python meanwhile.

    Args:
        image, mask, size: as in `augment`, but the image may be smaller than the window.
        nodes: where the nodes lie in the image, [2, 3, 3], in pixels; bicubic between them.
        contrast, brightness: a value v becomes contrast * v + brightness, rounded, and cut off at 0 and `white`; the brightness
            may be [C].
    """
    h, w = size
    y, x = spline(h) @ nodes.astype(np.float32) @ spline(w).T  # [h, w] each
    sampled = cv2.remap(np.ascontiguousarray(image), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    sampled_mask = cv2.remap(np.ascontiguousarray(mask), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    light = contrast * np.arange(white + 1) + np.broadcast_to(brightness, image.shape[-1])[:, None]  # [C, values]
    return look_up(light.round().clip(0, white), sampled.reshape(h, w, -1)), sampled_mask
