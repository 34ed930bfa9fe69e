"""Small images and masks, and folders of them, for the tests of whatever reads files."""

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)
GRAY = np.repeat(NOISE[..., :1], 3, axis=-1)
BLOBS = (NOISE[..., 0] > 128).astype(np.uint8)  # 0/1


def save(path, image, **options):
    """image: an array or a Pillow image. Returns: path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def save_pairs(folder, masks, image=NOISE, suffix=".png"):
    """images/0.png, 1.png, ..., cut to the size of their masks, and masks/ beside them. Returns: folder."""
    for i, mask in enumerate(masks):
        save(folder / f"images/{i}.png", image[: mask.shape[0], : mask.shape[1]] if isinstance(mask, np.ndarray) else image)
        save(folder / f"masks/{i}{suffix}", mask)
    return folder
