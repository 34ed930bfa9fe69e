"""Drawn cells, as a fluorescence microscope would show them: data with exact masks that need no download.

What makes them harder than a threshold: uneven light, haze that is brighter here than dim cells are there, bright specks
that are no cells, blur and noise. What makes them possible: every cell is brighter than the background right beside it.

Between two cells that touch, a pixel of background is left, in the image as in the mask: the lens blurs it to a faint dark
line, such as shows where two membranes meet. So every cell is a connected part of the foreground, as `data.borders` and
Ronneberger et al. 2015 want it.
"""

import contextlib
import multiprocessing
import signal

from common.config import Size, UserError
from common.shapes import margin
from common.streams import CELLS, generator

import numpy as np
from scipy.ndimage import label
from skimage.color import rgb2gray
from skimage.draw import polygon
from skimage.filters import gaussian, threshold_otsu
from tqdm import tqdm


def make_cells(n, size, seed, classes=1, channels=1):
    """Draws `n` images of touching cells, brighter than their background.

    Image i follows from (seed, i) and `size`: it is the same whatever `n` and `classes` are.

    Args:
        size: (height, width) in pixels. Cells have radii of 8 to 16 pixels, and smaller ones in images below 64 pixels.
        classes: 1 or 2: cells are 1; 3: their nuclei are 2. The background is 0.
        channels: 1: gray; 3: RGB, the cells stained green and their nuclei blue.

    Returns: images, uint8 [n, H, W, channels], 0 to 255, and masks, uint8 [n, H, W], class indices.

    Raises: UserError for more classes or other channels than there are to draw, and for more images than memory holds.
    """
    _check(classes, channels)
    found = None
    if ahead := _ahead.pop((n, *size, seed, channels), None):
        with contextlib.suppress(EOFError, OSError):  # the other process has died
            found = ahead.recv()
    images, masks = found or _drawn(n, size, seed, channels)
    return images, np.minimum(masks, max(classes - 1, 1))


def _check(classes, channels):
    if classes > 3:
        raise UserError(f"synthetic cells have at most 3 classes (background, cell, nucleus), got --classes {classes}")
    if channels not in (1, 3):
        raise UserError(f"synthetic cells are gray or RGB, got --channels {channels}: 1 or 3")


def _drawn(n, size, seed, channels):
    try:
        images, masks = np.empty((n, *size, channels), np.uint8), np.empty((n, *size), np.uint8)
    except (MemoryError, ValueError):
        raise UserError(f"there is no memory for --images {n} of {Size(*size)}: draw fewer or smaller ones") from None
    for i in tqdm(range(n), desc="drawing cells", unit="image", delay=1, leave=False, disable=None):
        rng = generator(seed, CELLS, i)
        body, nucleus, cells = scene(size, rng)
        images[i] = _photograph(body, nucleus, channels, rng)
        masks[i] = np.add(cells > 0, nucleus > 0, dtype=np.uint8)  # 1 cells, 2 nuclei
    return images, masks


def asked_for(config):
    """What `make_cells` is to draw for a run of `config`: the names of its arguments and their values.

    Images have 128x128 pixels, or so many that --crop-size fits into one and the margin that is mirrored around it.
    """
    crop, lost = config.data.crop_size or Size(0, 0), margin(config.network.depth, config.network.padding)
    size = config.data.image_size or Size(*(max(128, side - lost) for side in crop))
    network = config.network
    return dict(n=config.data.images, size=size, seed=config.network.seed, classes=network.classes, channels=network.channels)


_ahead = {}  # what is drawn -> the end of a pipe through which it comes


def draw_ahead(n, size, seed, classes, channels):
    """Lets another process draw what `make_cells` will be asked for, while this one imports TensorFlow: saves 1.2 s of 5.

    Raises: UserError, as `make_cells`.
    """
    _check(classes, channels)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def draw():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
        receiver.close()  # or it would wait for itself to read, where the other process has died
        with contextlib.suppress(Exception):  # `make_cells` will meet it again
            sender.send(_drawn(n, size, seed, channels))

    with contextlib.suppress(OSError):  # no more processes: `make_cells` draws
        multiprocessing.get_context("fork").Process(target=draw, daemon=True).start()
        _ahead[(n, *size, seed, channels)] = receiver
    sender.close()


def scene(size, rng):
    """Cells without light and camera: brightness of the bodies and of the nuclei, and the number of each cell, all [H, W].

    Brightness is 0 to 1, that of a nucleus above 0. Cells are 1, 2, 3, ..., each of them one piece. The background is 0, and
    lies between any two, so that not even corners touch. Those drawn first lie on top; of every cell three quarters show.
    """
    nucleus, cells = np.zeros(size), np.zeros(size, np.int32)
    # the pixels of cells and those around them: flat, which is faster, and with a border around the image, row by row
    stride = size[1] + 2
    near, around = np.zeros((size[0] + 2) * stride, bool), np.add.outer([-stride, 0, stride], [-1, 0, 1]).ravel()
    scale = min(1, min(size) / 64)
    wanted = rng.uniform(0.2, 0.5) * cells.size  # pixels of cells
    centres, radii, brightness = np.empty((0, 2)), np.empty(0), [0]
    for _ in range(10 + int(cells.size / (20 * scale**2))):  # crowded places refuse most cells
        radius, centre = rng.uniform(8, 16) * scale, rng.uniform((0, 0), size)
        if len(radii) and rng.random() < 0.6:  # touching a cell that is there already
            k, turn = rng.integers(len(radii)), rng.uniform(0, 2 * np.pi)
            centre = centres[k] + 0.9 * (radii[k] + radius) * np.array([np.sin(turn), np.cos(turn)])
        overlaps = np.linalg.norm(centres - centre, axis=1) < 0.8 * (radii + radius)
        if overlaps.any() or (centre < 0).any() or (centre >= size).any():
            continue
        stretch, angle = rng.uniform(1, 1.4), rng.uniform(0, np.pi)
        rows, columns = polygon(*_outline(centre, radius / stretch, radius * stretch, angle, rng), size)
        places = (rows + 1) * stride + columns + 1
        free = ~near[places]  # the rest lies under other cells, or would touch them
        if not free.any() or free.mean() < 0.75:
            continue
        if not free.all():
            rows, columns, places = rows[free], columns[free], places[free]
            piece = np.zeros(np.ptp([rows, columns], axis=1) + 1, bool)
            piece[rows - rows.min(), columns - columns.min()] = True
            if label(piece)[1] != 1:  # one piece hangs together by more than corners
                continue
        centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
        brightness.append(rng.uniform(0.35, 1))
        cells[rows, columns] = len(radii)
        near[places[:, None] + around] = True
        centre, radius = centre + rng.uniform(-0.2, 0.2, 2) * radius, radius * rng.uniform(0.35, 0.5)
        rows, columns = polygon(*_outline(centre, radius / stretch**0.5, radius * stretch**0.5, angle, rng), size)
        nucleus[rows, columns] += (cells[rows, columns] == len(radii)) * brightness[-1] * rng.uniform(0.4, 0.8)
        if np.count_nonzero(cells) >= wanted:
            break
    return np.array(brightness)[cells], nucleus, cells


def _outline(centre, short, long, angle, rng):
    """An ellipse that is a little out of round: rows [32] and columns [32] of its corners, in pixels."""
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    k = np.array([[2], [3], [4]])  # bumps around the cell
    bumps = 1 + (rng.normal(0, 0.05 / (k - 1)) * np.cos(k * turn + rng.uniform(0, 2 * np.pi, k.shape))).sum(axis=0)
    y, x = short * bumps * np.sin(turn), long * bumps * np.cos(turn)
    return centre[0] + y * np.cos(angle) + x * np.sin(angle), centre[1] + x * np.cos(angle) - y * np.sin(angle)


def _photograph(body, nucleus, channels, rng):
    """Light, lens and camera: brightness [H, W] of bodies and nuclei -> uint8 [H, W, channels]."""
    height, width = body.shape
    light, haze = 0.45 + 0.75 * _wave(height, width, rng), 0.05 + 0.8 * _wave(height, width, rng)
    specks = np.zeros((height, width))
    for _ in range(rng.poisson(height * width / 2500)):
        top, left = rng.integers((height, width))
        specks[top : top + rng.integers(1, 4), left : left + rng.integers(1, 4)] = rng.uniform(1, 3)
    body = body * (1 + gaussian(rng.normal(0, 0.5, body.shape), 1.5))  # organelles
    sigma = rng.uniform(0.7, 1.4)  # pixels out of focus
    body, nucleus, specks = gaussian(body, sigma), gaussian(nucleus, sigma), gaussian(specks, sigma)
    planes = [body + nucleus] if channels == 1 else [0.15 * body, body, 0.2 * body + 2 * nucleus]
    electrons = 120 * np.stack([light * plane + haze + specks for plane in planes], axis=-1)
    electrons = rng.poisson(electrons) + rng.normal(0, 3, electrons.shape)  # shot noise and read noise
    return np.clip(electrons, 0, 255).astype(np.uint8)


def _wave(height, width, rng):
    """A slow rise and fall across the image, [H, W], 0 to 1."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    wave = np.sin(rng.uniform(-2, 2) * y + rng.uniform(-2, 2) * x + rng.uniform(0, 2 * np.pi))
    return (wave - wave.min()) / np.ptp(wave)


def otsu_dice(images, masks):
    """What a threshold can do: the mean dice, 0 to 1, of Otsu's threshold in each image, the brighter side being the cells.

    images: uint8 [n, H, W, channels]; masks: uint8 [n, H, W], 0 the background.
    """
    dice = []
    for image, mask in zip(images, masks):
        gray = image[..., 0] if image.shape[-1] == 1 else rgb2gray(image)
        found, cells = gray > threshold_otsu(gray), mask > 0
        both = found.sum() + cells.sum()
        dice.append(2 * (found & cells).sum() / both if both else 1.0)
    return float(np.mean(dice))
