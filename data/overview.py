"""What a data set holds, before anyone trains on it: counts, sizes, classes, whatever is wrong, and a sheet of pictures.

    python -m data.overview --dataset folder --data-dir my_data

Takes the options of the train scripts. Prints what it finds and writes overview.png and overview.json into --output. Exits
with 1 if something is wrong with the images, each of which is named, and with 2 if they make no data set at all.
"""

import contextlib
import functools
import json
from collections import Counter
from pathlib import Path

from common.cli import OF_A_RUN, make_parser, parse, read_config, run_script
from common.config import FIELDS, VOID, Size, UserError
from common.metrics import balanced_weights
from common.output import prepare, write_text
from common.pictures import class_names, draw_grid, expendable, in_values, legend, mask_colors, names_of_values, shown_bands
from common.shapes import min_size, missing
from common.text import listed, say
from data.cache import decode
from data.files import in_8_bits, on_scale, stretched
from data.layouts import find_channels
from data.loader import augmented, find_white, grow, open_layout
from data.meaning import as_classes, check_classes, class_pixels, doubt, filled_in, mask_meaning
from data.splits import SIDES, split, torn_sequences

import numpy as np
from PIL import Image
from tqdm import tqdm

THUMBNAIL = 256  # pixels, the longer side of a picture in a sheet
PICTURES, COLUMNS = 24, 6  # at most in overview.png
ROWS, VERSIONS = 4, 5  # of augmentations.png
LEGEND = 40  # classes or values at most in the legend
LARGE = 2**20  # pixels, above which training on whole images is slow

# --- pictures ---


def overlay(image, mask, classes):
    """The mask over its image, shrunk to 256 pixels if larger: classes are tinted and outlined, the background is not.

    image: uint8 [H, W, 3], 0 to 255. mask: [H, W], class indices uint8, VOID where nothing is labelled, or int32 the numbers of
    objects, each of which has its outline then.
    Returns: [H', W', 3] in 0..1.
    """
    from skimage.segmentation import find_boundaries  # a training starts without it

    shrink = max(1, max(mask.shape) / THUMBNAIL)
    height, width = (max(round(n / shrink), 1) for n in mask.shape)
    image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BOX)) / 255
    mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    opacity = np.where(find_boundaries(mask, mode="inner"), 1, 0.3) * (mask > 0)
    return image + opacity[..., None] * (mask_colors(as_classes(mask), max(classes, 2)) - image)


def _labelled(name, image, mask, config):
    """(label, `overlay`) of an image [H, W, C] on the scale of the data set. mask: the values of the classes, or objects."""
    shown = in_8_bits(shown_bands(image, config.data.show_bands), config.data.scale)
    return name, overlay(shown, mask, config.network.classes or 256)


def _legend(config, seen=None):
    """`legend` of overlays, which leave class 0 as it is: of the classes, of many those that are `seen`, and of VOID."""
    values = [*config.shown_values, *([] if config.data.void_label is None else [VOID])]
    values = values if seen is None or len(values) <= LEGEND else [value for value in values if value in seen]
    entries = list(zip(values, legend(names_of_values(config), values)))[:LEGEND]
    more = [(f"and {len(values) - LEGEND} more", "none")] * (len(values) > LEGEND)
    return [entry if value else (f"{entry[0]} (not tinted)", "none") for value, entry in entries] + more


def draw_augmentations(path, training, config):
    """Writes a picture of a few training images: each as it is, and as the network sees it in the first epochs.

    training: `Examples`. config: with what `load_examples` found filled in.
    """
    rows = []
    for i in _spread(len(training.names), ROWS):
        label = f"{training.names[i]}\n{Size(*training.masks[i].shape)}"
        versions = [(f"in epoch {epoch + 1}", *augmented(config, training, epoch, i)) for epoch in range(VERSIONS)]
        rows.append([(label, training.images[i], training.masks[i]), *versions])
    values = np.asarray if config.data.objects else functools.partial(in_values, config=config)
    rows = [[_labelled(name, image, values(mask), config) for name, image, mask in row] for row in rows]
    title = f"Training images, and what the network sees of them with --augment {config.data.augment}"
    draw_grid(path, rows, title, _legend(config))


def _spread(n, most):
    """At most so many of n numbers, from the first to the last."""
    return np.unique(np.linspace(0, n - 1, most).astype(int)).tolist()


def draw_overview(path, layout, items, meaning, values, config):
    """Writes a sheet of images that are spread over the data set, with their masks.

    meaning: of the mask `values` that occur; None if it is unclear. config: with what `survey` found filled in.
    """
    table = in_values(meaning.table, config) if meaning else np.arange(256, dtype=np.uint8)
    pictures, seen, note = [], set(), meaning.note if meaning else "mask values as they are"
    for i in tqdm(_spread(len(items), PICTURES), "drawing", unit=" images", delay=1, leave=False, disable=None):
        image, mask = layout.read(items[i], _as_seen(config), None)
        image = on_scale(image, config.data.white, items[i].name)
        image = stretched(image, config.data.scale) if config.data.stretch else image
        mask = mask if layout.objects else table[mask]
        seen |= set(np.unique(as_classes(mask)).tolist())
        pictures.append(_labelled(f"{items[i].name}\n{Size(*mask.shape)}", image, mask, config))
    rows = [pictures[k : k + COLUMNS] for k in range(0, len(pictures), COLUMNS)]
    explained = _legend(config, seen) if meaning else legend({v: str(v) for v in values}, values[:LEGEND])
    draw_grid(path, rows, f"{_source(config)}: {len(pictures)} of {len(items)} images, {note}", explained)


# --- what there is ---


def _as_seen(config):
    """How many channels to look at: the colour of what the network reads as gray, too."""
    return 3 if config.network.channels == 1 else config.network.channels


def survey(layout, config):
    """Reads all images and keeps only what `data.cache.INDEX` has of them. config: with the channels.

    Returns: (summary, items, meaning, config): a dict that JSON can hold, the items to train and to validate on, what their
    masks mean, None if that is unclear, and the config with what was found filled in.

    Raises: UserError if no image can be read.
    """
    channels = config.network.channels
    index, left_out = decode(layout, layout.items, _as_seen(config), None, skip_bad=True)
    problems = [*layout.left_out, *left_out.values()]
    good = [k for k in range(len(index)) if k not in left_out]
    items, index, parts, meaning = [layout.items[k] for k in good], index[good], {}, None
    with _told(problems):  # with those that cannot be read: so does the loader
        parts = split(layout.items, config)
    side = {layout.items[i].name: part for part, indices in parts.items() for i in indices}
    seen = [i for i, item in enumerate(items) if item.name in side or not parts]  # what decides, as in the training
    as_read = index
    if channels != _as_seen(config) and (index["bits"] > 8).any():  # the brightest gray is darker than the brightest colour
        as_read = decode(layout, items, channels, None, skip_bad=True)[0]
    white, depth = find_white(as_read[seen], [items[i] for i in seen], config)
    found = config.replace(white=white)
    with _told(problems):
        meaning = mask_meaning(index["counts"][seen], [items[i] for i in seen], config, layout)
    if meaning:
        found = filled_in(found, layout, meaning)
    even = index["darkest"] == index["brightest"]
    problems += [f"{item.name}: all pixels of the image are equal" for item, row in zip(items, even) if row]
    sizes, counts = [Size(*size) for size in index["size"].tolist()], index["counts"]  # [n, 256]
    too_small, advice = size_advice([config.data.image_size or size for size in sizes], [item.name for item in items], config)
    problems += too_small
    over = [*layout.over, *torn_sequences(layout, parts, config), layout.note, doubt(config, index[seen])]
    advice = [*filter(None, over), *advice]
    alike = Counter(int(row.argmax()) for row in counts if np.count_nonzero(row) == 1)
    advice += [f"{n} of {len(items)} masks ({n / len(items):.1%}) hold only the value {value}" for value, n in alike.items()]
    if parts and (n := len(parts["train"])) < (batch := config.training.batch_size):
        advice.append(f"{n} images to train on do not fill a batch of {batch}: use --batch-size {n} or less")
    colored = int(index["color"].sum())
    groups = [item.group for item in layout.items if item.part != "test"] if parts else []
    summary = {
        "dataset": config.data.dataset,
        "data_dir": str(config.data.data_dir) if config.data.data_dir else None,
        "images": len(layout.items),
        "readable": len(items),
        "published_parts": dict(Counter(item.part for item in layout.items if item.part)),
        "split": {part: len(indices) for part, indices in parts.items()},
        "groups": dict(Counter(filter(None, groups))),
        "sizes": {str(size): n for size, n in Counter(sizes).most_common()},
        **{name: str(_size(of, sizes)) for name, of in dict(smallest=np.min, median=np.median, largest=np.max).items()},
        "color_images": colored,
        "channels": channels,
        "white": white,
        "depth": depth,
        "mask_values": {int(value): int(counts[:, value].sum()) for value in np.flatnonzero(counts.any(axis=0))},
        "masks": meaning and meaning.note,
        "objects": index["objects"].tolist() if layout.objects else None,
        "classes": meaning and meaning.classes,
        "advice": advice,
        "problems": problems,
    }
    if meaning:
        pixels = class_pixels(counts, meaning)
        training = pixels[[side.get(item.name) == "train" for item in items]]
        weights = balanced_weights(training) if training.any() else [None] * len(pixels[0])  # else nothing is labelled
        names = class_names(found.data.class_names, len(pixels[0]))
        shares, images = pixels.sum(axis=0) / max(pixels.sum(), 1), np.count_nonzero(pixels, axis=0)
        rows = zip(names, shares.tolist(), images.tolist(), weights, strict=True)
        summary["void_pixels"] = float(1 - pixels.sum() / counts.sum())
        summary["class_frequencies"] = [dict(zip(("name", "pixels", "images", "balanced_weight"), row)) for row in rows]
        if parts:
            sides = [[side.get(item.name) == part for item in items] for part in SIDES]
            with _told(problems):
                check_classes(found, *(pixels[of].any(axis=0) for of in sides))
    return summary, [items[i] for i in seen], meaning, found


@contextlib.contextmanager
def _told(problems):
    """A mistake becomes one of the `problems`."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _size(of, sizes):
    """The `Size` of all heights and of all widths."""
    return Size(*of(sizes, axis=0).astype(int).tolist())


def size_advice(sizes, names, config):
    """What the network asks of images of these sizes: (problems, advice), lines for the user."""
    problems, advice = [], []
    step, crop = 2**config.network.depth, config.data.crop_size
    low, middle, high = (_size(of, sizes) for of in (np.min, np.median, np.max))
    smallest = crop or Size(min_size(config.network), min_size(config.network))
    small = [f"{name} ({size})" for name, size in zip(names, sizes) if any(n < m for n, m in zip(grow(config, size), smallest))]
    if small:
        least = f"{smallest}, the least for --depth {config.network.depth} --padding {config.network.padding}"
        problems.append(f"{len(small)} images are smaller than {f'--crop-size {crop}' if crop else least}: {listed(small, 5)}")
    # windows of 256 pixels, or the largest that the network takes and all images have; 512 pixels for a typical image
    window = next((n for n in range(min(*grow(config, low), 256), step, -1) if not missing(n, config.network)), step)
    shrink = max(1, max(middle) / 512)
    resized = Size(*(max(round(n / shrink / step), 1) * step for n in middle))
    if low != high and not crop:
        advice.append(
            f"a batch needs images of one size: train on windows, --crop-size {window}, or resize all, --image-size {resized}"
        )
    elif middle.height * middle.width > LARGE and not crop:
        times = round(middle.height * middle.width / 128**2)
        advice.append(
            f"a step on whole images is {times} times the work of one on 128x128: shrink them, --image-size {resized}, "
            f"or train on windows, --crop-size {window}"
        )
    return problems, advice


# --- the command ---


def _source(config):
    return config.data.data_dir or "synthetic cells"


def describe(s, source):
    """The lines to print of the summary `s`."""
    bad = s["images"] - s["readable"]
    yield f"{source}: {s['images']} images with masks" + (f", {bad} of them cannot be read" if bad else "")
    of, groups, n = s["split"], s["groups"].values(), s["objects"]
    kinds = {"gray": s["readable"] - s["color_images"], "RGB": s["color_images"]}
    kinds = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n) if s["channels"] in (1, 3) else f"{s['channels']} bands"
    reads = f"the network reads {s['channels']} channel{'s' * (s['channels'] > 1)}"
    distinct = f"{s['smallest']} to {s['largest']}, median {s['median']}, {len(s['sizes'])} distinct"
    values = [str(value) for value in s["mask_values"]]
    lines = {
        "published": ", ".join(f"{n} {part}" for part, n in s["published_parts"].items()),
        "split": of and f"{of['train']} to train on, {of['val']} to validate",
        "groups": groups and f"{len(groups)} of {min(groups)} to {max(groups)} images; each stays on one side of the split",
        "sizes": distinct if len(s["sizes"]) > 1 else f"{s['median']}, all of them",
        "images": "; ".join(filter(None, [kinds, reads, s["depth"]])),
        "masks": s["masks"] or f"unclear, they hold {len(values)} values: {listed(values, 12)}",
        "objects": n and f"{sum(n):,}, {min(n)} to {max(n)} in an image, median {int(np.median(n))}",
    }
    yield from (f"  {label:<11}{text}" for label, text in lines.items() if text)
    if s["classes"]:
        width = max(len(row["name"]) for row in s["class_frequencies"])
        yield f"  {'classes':<11}{'':<{width}}  pixels   in images  balanced weight"
        for row in s["class_frequencies"]:
            weight = "" if row["balanced_weight"] is None else f"{row['balanced_weight']:.3g}"
            yield f"  {'':<11}{row['name']:<{width}}  {row['pixels']:6.2%}  {row['images']:>10}  {weight:>15}"
        if s["void_pixels"]:
            yield f"  {'':<11}void, ignored: {s['void_pixels']:.2%} of all pixels"
    yield from (f"  {'note':<11}{text}" for text in s["advice"])
    n = len(s["problems"])
    yield "no problems" if n == 0 else f"{n} problem{'s' if n > 1 else ''}:"
    yield from (f"  {text}" for text in s["problems"])


def main(argv=None):
    parser = make_parser("data.overview", __doc__, {"preset", *FIELDS} - OF_A_RUN - {"run_dir"})
    parser.add_argument(
        "--output", type=Path, metavar="PATH", default=Path("runs/overview"), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier overview there")
    args = parse(parser, argv)
    config = read_config(args)
    prepare((args.output / name for name in ("overview.json", "overview.png")), args.overwrite)
    layout = open_layout(config)
    config = config.replace(channels=config.network.channels or find_channels(layout))
    summary, items, meaning, config = survey(layout, config)
    for line in describe(summary, _source(config)):
        say(line)
    write_text(args.output / "overview.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    with expendable(args.output / "overview.png"):
        draw_overview(args.output / "overview.png", layout, items, meaning, list(summary["mask_values"]), config)
    print(f"see {args.output}/")
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    run_script(main)
