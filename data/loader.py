"""One pipeline for all three implementations: the examples in memory, and the batches drawn from them.

Whatever is random follows from (seed, stream, epoch, index), not from what was drawn before. So a run that resumes at step k
sees the batches that the uninterrupted run would have seen, and a batch can be named without being drawn.
"""

import dataclasses
from dataclasses import dataclass

from common.config import Size, UserError
from common.shapes import margin, min_size
from data.augment import flips, random_crop
from data.layouts import class_indices, find_folder, read_image, read_mask
from data.synthetic import make_cells

import numpy as np
import tensorflow as tf
from skimage.transform import resize
from tqdm import tqdm

SPLIT, ORDER, AUGMENT = 1, 2, 3  # the streams of random numbers
FOUND = ("channels", "classes", "void_label", "class_names", "class_weights")  # what `load_examples` fills in


@dataclass(frozen=True)
class Examples:
    """Images and their masks, in memory at one byte per value."""

    names: list[str]  # the images' file names, for messages
    images: list[np.ndarray]  # uint8 [H, W, channels], 0 to 255
    masks: list[np.ndarray]  # uint8 [H, W], class indices


def load_examples(config):
    """Draws or reads the images and holds some back for validation, picked by the seed. Prints one line about them.

    Returns: (config, training, validation): `config` with what was found in the data filled in, and two `Examples` with one
    image each at least.

    Raises: UserError for files that make no data set, and for images that do not fit the network, the crop or the batch.
    """
    config = dataclasses.replace(config, channels=config.channels or 1, classes=config.classes or 1)
    if config.dataset == "synthetic":
        source, notes, size = "synthetic cells", [], config.image_size or Size(128, 128)
        images, masks = make_cells(config.images, size, config.seed, config.classes, config.channels)
        examples = Examples([f"synthetic image {i}" for i in range(config.images)], list(images), list(masks))
    else:
        source = config.data_dir
        examples, notes = _read_folder(config)
    n = len(examples.names)
    if n < 2:
        raise UserError(f"{source} holds only one image, {examples.names[0]}: it takes one to train on and one to validate")
    order = np.random.default_rng((config.seed, SPLIT)).permutation(n)
    held_back = min(max(round(n * config.validation), 1), n - 1)
    validation, training = (
        Examples(*([field[i] for i in sorted(part)] for field in (examples.names, examples.images, examples.masks)))
        for part in (order[:held_back], order[held_back:])
    )
    _check_sizes(config, training, validation)

    heights, widths = zip(*(mask.shape for mask in examples.masks))
    small, large = Size(min(heights), min(widths)), Size(max(heights), max(widths))
    pixels = f"{small if small == large else f'{small} to {large}'} {'gray' if config.channels == 1 else 'RGB'}"
    print(f"{source}: {n - held_back} images to train on, {held_back} to validate, {', '.join([pixels, *notes])}", flush=True)
    return config, training, validation


def _read_folder(config):
    """-> (Examples, [notes for the user]), resized to `config.image_size` if there is one."""
    names, image_paths, mask_paths = zip(*find_folder(config.data_dir))
    images, masks = [], []
    for paths in tqdm(list(zip(image_paths, mask_paths)), desc="reading", unit="image", delay=1, leave=False, disable=None):
        image, mask = read_image(paths[0], config.channels), read_mask(paths[1])
        sizes = Size(*image.shape[:2]), Size(*mask.shape)
        if sizes[0] != sizes[1]:
            raise UserError(f"{paths[0]} is {sizes[0]} pixels, but its mask {paths[1]} is {sizes[1]}: they must have one size")
        if config.image_size not in (None, sizes[0]):
            image = resize(image, config.image_size, order=1, anti_aliasing=True, preserve_range=True)
            image = np.rint(image).astype(np.uint8)
            # the nearest pixel: between classes 1 and 3 there is no class 2
            mask = resize(mask, config.image_size, order=0, anti_aliasing=False, preserve_range=True).astype(np.uint8)
        images.append(image)
        masks.append(mask)
    masks, note = class_indices(masks, mask_paths, config.classes)
    notes = [note]
    if config.channels == 1 and np.ptp(read_image(image_paths[0], 3), axis=-1).any():
        notes.append("converted to gray (--channels 3 keeps the colour)")
    return Examples(list(names), images, masks), notes


def _check_sizes(config, training, validation):
    """Raises: UserError for too few images, and for the first image that is too small or unlike the others."""
    n = len(training.names)
    if n < config.batch_size:
        raise UserError(f"{n} images to train on, but --batch-size is {config.batch_size}: use a smaller batch or more images")
    smallest, crop = min_size(config), config.crop_size or Size(0, 0)
    for name, mask in zip(training.names + validation.names, training.masks + validation.masks):
        size = Size(*mask.shape)
        if min(size) < smallest:
            raise UserError(
                f"{name} is {size} pixels, but {config.depth} poolings with {config.padding!r} padding need at least "
                f"{smallest}: use a smaller --depth or a larger --image-size"
            )
        if size.height < crop.height or size.width < crop.width:
            raise UserError(f"{name} is {size} pixels, smaller than --crop-size {crop}: use a smaller crop or --image-size")
    first = Size(*training.masks[0].shape)
    for name, mask in zip(training.names, training.masks):
        if mask.shape != first and config.crop_size is None:
            raise UserError(
                f"the images of a batch need one size, but {training.names[0]} is {first} pixels and {name} is "
                f"{Size(*mask.shape)}: use --crop-size to train on windows of one size, or --image-size to resize them all"
            )


def steps_per_epoch(config, training):
    """Full batches only, so that every step has the same shape. What is left over changes with the order of the epoch."""
    return len(training.names) // config.batch_size


def _batch(config, training, step):
    """The epoch of a global step, counted from 0, and the indices of its images."""
    epoch, position = divmod(int(step), steps_per_epoch(config, training))
    order = np.random.default_rng((config.seed, ORDER, epoch)).permutation(len(training.names))
    return epoch, order[position * config.batch_size : (position + 1) * config.batch_size]


def batch_names(config, training, step):
    """The file names of the images in the batch of that global step, counted from 0."""
    return [training.names[i] for i in _batch(config, training, step)[1]]


def training_batches(config, training, first_step=0):
    """All batches from `first_step` to the end of the last epoch, as one flat data set; see `_pipeline` for the elements."""
    size = config.crop_size or training.masks[0].shape

    def draw(step):
        epoch, indices = _batch(config, training, step)
        images, masks = [], []
        for i in indices:
            rng = np.random.default_rng((config.seed, AUGMENT, epoch, i))
            image, mask = random_crop(training.images[i], training.masks[i], size, rng)
            if config.augment == "flips":
                image, mask = flips(image, mask, rng)
            images.append(image)
            masks.append(mask)
        return np.stack(images), np.stack(masks)

    steps = range(first_step, config.epochs * steps_per_epoch(config, training))
    return _pipeline(config, steps, draw, [config.batch_size, *size])


def validation_batches(config, validation):
    """Whole images in order, the last batch as small as it comes; one by one if their sizes differ. See `_pipeline`."""
    n, sizes = len(validation.names), {mask.shape for mask in validation.masks}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    batch_size = config.batch_size if height else 1

    def read(step):
        part = slice(step * batch_size, (step + 1) * batch_size)
        return np.stack(validation.images[part]), np.stack(validation.masks[part])

    return _pipeline(config, range(-(-n // batch_size)), read, [None if n % batch_size else batch_size, height, width])


def _pipeline(config, steps, batch, shape):
    """The data set of `batch(step)`, uint8 images [N, H, W, C] and masks [N, H, W] of the static `shape`, for all `steps`.

    Elements: images [N, H, W, C] float32, 0 to 1; masks [N, H - margin, W - margin, 1] float32, class indices: as large as
    the logits, which "valid" padding makes smaller than the image.
    """
    cut = margin(config.depth, config.padding) // 2  # pixels on each side

    def load(step):
        # stateful=False: the numbers follow from the step alone, so batches may be drawn in parallel
        images, masks = tf.numpy_function(batch, [step], (tf.uint8, tf.uint8), stateful=False)
        images = tf.ensure_shape(images, [*shape, config.channels])
        masks = tf.ensure_shape(masks, shape)[..., tf.newaxis]
        if cut:
            masks = masks[:, cut:-cut, cut:-cut]
        return tf.cast(images, tf.float32) / 255, tf.cast(masks, tf.float32)

    batches = tf.data.Dataset.range(steps.start, steps.stop).map(load, num_parallel_calls=2, deterministic=True).prefetch(2)
    # Nothing is left to tune, and the tuner's thread wakes up less and less often, in the end every 60 s: whoever drops the
    # iterator waits for it. Measured: up to 57 s at the end of a run of 90 s.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
