"""One pipeline for all three implementations: the examples, and the batches drawn from them.

Whatever is random follows from (seed, stream, epoch, index), see `common.streams`, not from what was drawn before. So a run
that resumes at step k sees the batches of the uninterrupted run, and a batch can be named without being drawn.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import CORES
from common.config import Names, Size, UserError, Weights
from common.device import tf
from common.metrics import balanced_weights
from common.shapes import margin, min_size, missing, needs
from common.streams import AUGMENT, ORDER, generator
from common.text import listed, say
from data.augment import augment
from data.borders import border_weights, part_touching
from data.cache import prepare
from data.files import TOP, on_scale, stretched
from data.layouts import Item, Layout, find_channels, find_layout
from data.meaning import as_classes, check_classes, class_pixels, doubt, filled_in, mask_meaning
from data.splits import split, torn_sequences
from data.synthetic import asked_for, make_cells

import cv2
import numpy as np

LONGEST = 2**15 - 2  # pixels of a side, that OpenCV's remap takes
LEVELS = 200  # of gray that floats must have at least: 8 bits have 256


@dataclass(frozen=True)
class Examples:
    """Images and their masks at one byte per value, in memory or read when they are asked for."""

    names: list[str]  # of the images: for messages and split.json
    images: Sequence[np.ndarray]  # uint8 or uint16 [H, W, channels], 0 to `Data.scale`
    masks: Sequence[np.ndarray]  # uint8 [H, W], class indices, and VOID
    sizes: list[Size]
    left_out: list[str] = dataclasses.field(default_factory=list)  # what --skip-bad passed over, and why
    checksums: list[str] = dataclasses.field(default_factory=list)  # of each image and mask, as they are stored
    objects: Sequence[np.ndarray] = ()  # int32 [H, W], 0 and the numbers 1 to n of the objects, where the masks number them


@dataclass(frozen=True)
class Stored(Sequence):
    """Images or masks that are read, by their number in `data.cache.Prepared`, when they are asked for."""

    read: Callable
    numbers: list[int]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        return self.read(self.numbers[i])


def load_examples(config):
    """Draws or reads the images and holds some back to validate on, as `data.splits` says. Prints a line about them.

    Returns: (config, training, validation): `config` with what was found in the data filled in, and two `Examples` with one
    image each at least.

    Raises: UserError for files that make no data set, and for images that do not fit the network, the crop or the batch.
    """
    layout = open_layout(config)
    _check_run_dir(config, layout)
    parts, asked, data_dir = split(layout.items, config), config.network.channels, config.data.data_dir
    items = [layout.items[i] for i in sorted(parts["train"] + parts["val"])]
    channels = asked or find_channels(layout)
    # cells are drawn anew: the key of a cache is made of files
    prepared = prepare(layout, items, channels, config if data_dir else config.replace(cache=None))
    good = [k for k in range(len(items)) if k not in prepared.left_out]
    index, usable = prepared.index, [items[k] for k in good]
    meaning = mask_meaning(index["counts"][good], usable, config, layout)
    white, depth = find_white(index[good], usable, config)
    config = filled_in(config, layout, meaning).replace(white=white, channels=channels)

    def image(k):
        values = on_scale(prepared.image(k), white, items[k].name)
        return stretched(values, config.data.scale) if config.data.stretch else values

    def mask(k):
        return cv2.LUT(as_classes(prepared.mask(k)), meaning.table)  # ten times as fast as table[...]

    left_out, chosen = [*layout.left_out, *prepared.left_out.values()], []
    for part, wanted in parts.items():
        wanted = {layout.items[i].name for i in wanted}
        numbers = [k for k in good if items[k].name in wanted]
        if not numbers:
            raise UserError(f"{data_dir}: nothing is left to {part} on; the first that was left out: {left_out[0]}")
        names, sizes = [items[k].name for k in numbers], [prepared.size(k) for k in numbers]
        checksums = ["{:08x}{:08x}".format(*index["checksums"][k]) for k in numbers]
        objects = Stored(prepared.mask, numbers) if layout.objects else ()
        chosen.append(Examples(names, Stored(image, numbers), Stored(mask, numbers), sizes, left_out, checksums, objects))
    training, validation = chosen
    counts = [class_pixels(index["counts"][part.images.numbers], meaning) for part in chosen]
    check_classes(config, *(found.any(axis=0) for found in counts))
    if config.training.class_weights == Weights():
        config = config.replace(class_weights=balanced_weights(counts[0]))
    _check_sizes(config, training, validation)
    small, large = (Size(*limit(training.sizes + validation.sizes, axis=0).tolist()) for limit in (np.min, np.max))
    fitted = {grow(config, size, fits=True) for size in training.sizes}
    mirrored = not config.data.crop_size and fitted != {grow(config, size) for size in training.sizes}
    apart, groups = sum(item.part == "test" for item in layout.items), {item.group for item in items} - {""}
    alone = len(layout.items) - sum(map(len, parts.values()))
    notes = [
        f"{len(training.names)} images to train on, {len(validation.names)} to validate",
        f"{small if small == large else f'{small} to {large}'} {config.network.bands}",
        depth,
        meaning.note,
        layout.note,
        layout.objects and f"{index['objects'].sum():,} objects",
        doubt(config, index[good]),
        groups and f"{len(groups)} groups, each on one side",
        apart and f"{apart} of the test part left alone",
        alone > apart and f"{alone - apart} on neither side left alone",
        asked == 1 and find_channels(layout) == 3 and "converted to gray (--channels 3 keeps the colour)",
        mirrored and f"mirrored at the borders up to {fitted.pop()} to train on, which halves {config.network.depth} times",
    ]
    say(f"{data_dir or 'synthetic cells'}: {', '.join(filter(None, notes))}")
    for line in [*layout.over, *torn_sequences(layout, parts, config), *(f"left out: {line}" for line in left_out)]:
        say(line)
    return config, training, validation


def open_layout(config):
    """The `Layout` of the data set: what lies on disk, or drawn cells, which lie in memory."""
    if config.data.dataset != "synthetic":
        return find_layout(config)
    images, masks = make_cells(**asked_for(config))
    items = [Item(f"synthetic image {i}", Path(), Path(), page=i) for i in range(config.data.images)]

    def read(item, channels, size):
        image = images[item.page]
        return (image if image.shape[-1] == channels else np.repeat(image, channels, axis=-1)), masks[item.page]

    n = max(config.network.classes, 2)
    names = Names(("background", "cell", "nucleus")[:n])
    return Layout(items, read, {c: c for c in range(n)}, names, channels=config.network.channels)


def find_white(index, items, config):
    """What is white in images of more than 8 bits, decided once for the data set: --white, or the brightest value in any.

    index: of the `items`, an array of `data.cache.INDEX`.

    Returns: the value, an int for whole numbers, a float for floats, None where all have 8 bits; and a note for the user or "".

    Raises: UserError for a --white that there is nothing for, or of which little is left, for floats above 1 without it, and
    for floats beside whole numbers of 16 bits, which have no scale in common.
    """
    white, deep, floats, peaks = config.data.white, index["bits"] > 8, index["bits"] == 32, index["brightest"]
    if not deep.any():
        if white:
            raise UserError(f"--white {white:g} is for images of 16 bits or floats, and all have 8 bits: leave it out")
        return None, ""
    whole = deep & ~floats
    if floats.any() and whole.any():
        few, what = (floats, "floats") if floats.sum() <= whole.sum() else (whole, "whole numbers of 16 bits")
        names = listed([item.name for item, odd in zip(items, few) if odd], 3)
        what = f"{few.sum()} of {deep.sum()} images hold {what}, and the others do not"
        raise UserError(f"{what}, so they have no white in common: save {names} as the others are")
    top = float(peaks[deep].max())
    if floats.any():
        little, problem = f"of which little is left with {white or 1:g} as white: ", ""
        if not white and top > 1:
            problem = "outside of 0 to 1, so nothing says what is white"
        elif top / (white or 1) * TOP < LEVELS:
            problem = f"{little}fewer than {LEVELS} levels"
        elif white and np.mean(index["middle"][floats] > white) > 0.5:
            problem = f"{little}most are above it"
        if problem:
            darkest, name = float(index["darkest"][floats].min()), items[int(np.where(deep, peaks, -1).argmax())].name
            held = f"the images hold floats of {darkest:.6g} to {top:.6g}, as in {name}"
            raise UserError(f"{held}, {problem}: name it with --white {top:.6g}")
        white = float(white or top)
    elif white and (white != int(white) or white > 65535):
        raise UserError(f"--white {white:g} is no value of images of 16 bits, which hold 1 to 65535: leave it out")
    else:
        white = int(white or max(top, 1))
    note = f"{'floats' if floats.any() else '16 bits'} with {white:.6g} as white"
    if above := np.count_nonzero(peaks[deep] > white):
        note += f", and so is what lies above in {above} images"
    if not deep.all():
        note += f", in {np.count_nonzero(~deep)} of 8 bits 255"
    return white, note


def _check_run_dir(config, layout):
    """Raises: UserError for a run that would write among the images or masks, where its pictures would be taken for some."""
    run_dir, data_dir, cache = config.training.run_dir, config.data.data_dir, config.data.cache
    if not run_dir or not data_dir:
        return
    run = run_dir.resolve()
    if cache and cache.resolve().is_relative_to(run):
        raise UserError(f"--cache {cache} lies in --run-dir {run_dir}, which holds a run alone: name a folder elsewhere")
    top = (data_dir.parent if data_dir.is_file() else data_dir).resolve()
    for folder in {path.parent.resolve() for item in layout.items for path in (item.image, *item.masks)}:
        if run == folder or folder != top and run.is_relative_to(folder):
            raise UserError(f"--run-dir {run_dir} lies among the images, in {folder}: name a folder elsewhere")


def _check_sizes(config, training, validation):
    """Raises: UserError for too few images, and for the first image that is too small or unlike the others."""
    n, batch, kind = len(training.names), config.training.batch_size, config.data.augment
    if n < batch:
        raise UserError(f"{n} images to train on, but --batch-size is {batch}: use a smaller batch or more images")
    smallest, crop, first = min_size(config.network), config.data.crop_size, training.sizes[0]
    for name, size in zip(training.names + validation.names, training.sizes + validation.sizes):
        grown = grow(config, size)
        if min(grown) < smallest:
            needed = f"but {needs(config.network)}: use a smaller --depth or a larger --image-size"
            raise UserError(f"{name} is {size} pixels, {needed}")
        if crop and (grown.height < crop.height or grown.width < crop.width):
            raise UserError(f"{name} is {size} pixels, smaller than --crop-size {crop}: use a smaller crop or --image-size")
    for name, size in zip(training.names, training.sizes):
        whole = kind in ("elastic", "paper", "photo") or kind == "recolor" and not crop
        if whole and max(grow(config, size, fits=not crop)) > LONGEST:
            raise UserError(
                f"{name} is {size} pixels, and --augment {kind} takes sides of {LONGEST} at most, mirrored borders too: cut it "
                "into parts, or use --augment flips"
            )
        if size != first and not crop:
            raise UserError(
                f"the images of a batch need one size, but {training.names[0]} is {first} pixels and {name} is "
                f"{size}: use --crop-size to train on windows of one size, or --image-size to resize them all"
            )


def _borders(config, size, fits):
    """[(before, after)] pixels of each axis by which an image of `size` is mirrored around its border.

    With "valid" padding the network predicts a margin less on each side, and the image is mirrored there, so that all of it is
    predicted (Ronneberger et al. 2015, figure 2). If it `fits`, then also up to the next size that the network takes.
    """
    lost = margin(config.network.depth, config.network.padding) // 2
    lacks = [missing(side + 2 * lost, config.network) if fits else 0 for side in size]
    return [(lost + n // 2, lost + n - n // 2) for n in lacks]


def grow(config, size, fits=False):
    """The `Size` with `_borders`."""
    return Size(*(side + sum(border) for side, border in zip(size, _borders(config, size, fits))))


def window(config, training):
    """The `Size` of what the network sees in training: the crop, or the first image mirrored up to a size that fits."""
    return config.data.crop_size or grow(config, training.sizes[0], fits=True)


def _example(config, examples, i, fits=False):
    """image [H, W, C] on its scale and mask [H, W], uint8 or the numbers of objects, with `_borders` around both."""
    image, mask = examples.images[i], (examples.objects or examples.masks)[i]
    borders = _borders(config, mask.shape, fits)
    if not any(map(any, borders)):
        return image, mask
    return np.pad(image, [*borders, (0, 0)], "reflect"), np.pad(mask, borders, "reflect")


def steps_per_epoch(config, training):
    """Full batches only, so that every step has the same shape. What is left over changes with the order of the epoch."""
    return len(training.names) // config.training.batch_size


def _batch(config, training, step):
    """The epoch of a global step, counted from 0, and the indices of its images."""
    epoch, position = divmod(int(step), steps_per_epoch(config, training))
    order = generator(config.network.seed, ORDER, epoch).permutation(len(training.names))
    return epoch, order[position * config.training.batch_size : (position + 1) * config.training.batch_size]


def batch_names(config, training, step):
    """The file names of the images in the batch of that global step, counted from 0."""
    return [training.names[i] for i in _batch(config, training, step)[1]]


def augmented(config, training, epoch, i):
    """What the network sees of training image `i` in an epoch, counted from 0: image [h, w, C] and mask [h, w].

    The mask holds class indices, uint8, or where the data tells objects apart their numbers, int32, and no two touch.
    """
    rng = generator(config.network.seed, AUGMENT, epoch, i)
    example = _example(config, training, i, fits=not config.data.crop_size)
    image, mask = augment(*example, window(config, training), config.data.augment, rng, config.data.scale)
    return image, part_touching(mask) if config.data.objects else mask


def training_batches(config, training, first_step=0):
    """All batches from `first_step` to the end of the last epoch, as one flat data set; see `as_floats` for the elements.

    With several devices each replica gets its rows of the batch, in order; a host draws those of its own replicas alone.
    """

    strategy = tf.distribute.get_strategy()
    rows = config.training.batch_size // strategy.num_replicas_in_sync  # of a batch for each replica

    def pipeline(context):
        here = strategy.num_replicas_in_sync // context.num_input_pipelines  # replicas of this host

        def draw(k):
            step, replica = divmod(int(k), here)
            first = (context.input_pipeline_id * here + replica) * rows
            epoch, indices = _batch(config, training, step)
            return [augmented(config, training, epoch, i) for i in indices[first : first + rows]]

        steps = range(first_step * here, config.training.epochs * steps_per_epoch(config, training) * here)
        return _pipeline(config, steps, draw, [rows, *window(config, training)])

    if strategy.num_replicas_in_sync == 1:
        return pipeline(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(pipeline)


def validation_batches(config, validation):
    """Whole images in order, the last batch as small as it comes; one by one if their sizes differ. See `as_floats`."""
    n, sizes = len(validation.names), set(validation.sizes)
    height, width = grow(config, sizes.pop()) if len(sizes) == 1 else (None, None)
    batch_size = config.training.batch_size if height else 1

    def read(step):
        part = range(step * batch_size, min((step + 1) * batch_size, n))
        examples = [_example(config, validation, i) for i in part]
        return [(image, part_touching(mask) if config.data.objects else mask) for image, mask in examples]

    return _pipeline(config, range(-(-n // batch_size)), read, [None if n % batch_size else batch_size, height, width])


def _floats(*shape):
    """float32 of that shape, uninitialized, at a multiple of 64 bytes: where TensorFlow takes an array over without a copy."""
    n = math.prod(shape)
    memory = np.empty(n + 15, np.float32)
    return memory[-memory.ctypes.data // 4 % 16 :][:n].reshape(shape)


def as_floats(config, examples):
    """N pairs of an image [H, W, C] and a mask [H, W], uint8 or the numbers of objects, as the train and eval steps take them.

    Returns: images [N, H, W, C] float32, 0 to 1; masks [N, H - margin, W - margin, 1] float32, class indices: as large as
    the logits, which "valid" padding makes smaller than the image. With --weight-map masks have a second channel,
    the weights of the pixels.
    """
    cut, white = margin(config.network.depth, config.network.padding) // 2, np.float32(config.data.scale)
    weights = config.training.class_weights or [1.0] * 255
    height, width, bands = examples[0][0].shape
    images = _floats(len(examples), height, width, bands)
    masks = _floats(len(examples), height - 2 * cut, width - 2 * cut, 1 + config.training.weight_map)
    for x, y, (image, mask) in zip(images, masks, examples):  # one by one: an image stays in a core's cache
        x[:] = image
        x /= white
        mask = mask[cut : height - cut, cut : width - cut]
        y[..., 0] = classes = as_classes(mask)
        if config.training.weight_map:
            y[..., 1] = border_weights(classes, weights, mask if config.data.objects else None)
    return images, masks


def _pipeline(config, steps, batch, shape):
    """The data set of `as_floats(config, batch(step))` for all `steps`. shape: N, H, W of the images, None where it varies."""
    cut, channels = margin(config.network.depth, config.network.padding), 1 + config.training.weight_map

    @tf.autograph.experimental.do_not_convert  # nothing in it depends on a tensor's value, and reading its source takes time
    def load(step):
        def draw(step):
            return as_floats(config, batch(step))

        # stateful=False: the numbers follow from the step alone, so batches may be drawn in parallel
        images, masks = tf.numpy_function(draw, [step], (tf.float32, tf.float32), stateful=False)
        n, *sides = shape
        inner = [side and side - cut for side in sides]
        return tf.ensure_shape(images, [n, *sides, config.network.channels]), tf.ensure_shape(masks, [n, *inner, channels])

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    batches = numbers.map(load, num_parallel_calls=CORES, deterministic=True).prefetch(2)
    # Nothing is left to tune, and the tuner's thread wakes up less and less often, in the end every 60 s: whoever drops the
    # iterator waits for it. Measured: up to 57 s at the end of a run of 90 s.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
