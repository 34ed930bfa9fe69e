"""Feeds every reader of the project with damaged input, in a process of its own whose memory and time can be told.

    python -m tests.fuzz.readers FOLDER SEED INPUTS      prints a line of JSON: what was tried and what it came to

A reader may take an input or refuse it by `UserError` in one line; anything else is a fault. What is at work is kept in FOLDER.
"""

import copy
import functools
import io
import json
import random
import re
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import compare
import predict
from common.checkpoint import COLUMNS, read_checkpoint
from common.config import Config, UserError
from common.weights import initial_weights
from data import cache
from data.files import count_bands, count_pages, read_image, read_mask, read_objects
from data.layouts import Item, Layout, find_layout, masks_of
from data.polygons import read_outlines
from data.splits import split
from training.folder import read_config
from training.options import read_command_line
from training.report import read_history

import h5py
import numpy as np
import tifffile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

SECONDS, MEMORY = 10, 1.5  # of one input; GiB, TensorFlow among them
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
RUN = Config.of(filters=2, depth=1, channels=1, classes=1)

# --- what is damaged ---


def images():
    """Encoded images of every kind, by suffix."""
    gray, colour = Image.fromarray(PIXELS[..., 0]), Image.fromarray(PIXELS)
    deep, real = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), Image.fromarray(PIXELS[..., 0] / np.float32(255))
    kinds = [(gray, "PNG", {}), (colour, "PNG", {}), (deep, "PNG", {}), (colour.quantize(16), "PNG", {})]
    kinds += [(gray, "JPEG", {}), (colour, "JPEG", {"progressive": True}), (colour, "BMP", {}), (colour, "WEBP", {})]
    kinds += [(gray, "TIFF", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")]
    kinds += [(deep, "TIFF", {}), (real, "TIFF", {}), (gray.convert("1"), "TIFF", {"compression": "group4"})]
    kinds += [(gray, image, {"save_all": True, "append_images": [gray, gray]}) for image in ("TIFF", "GIF")]
    found = []
    for image, kind, options in kinds:
        image.save(file := io.BytesIO(), kind, **options)
        found.append((f".{kind.lower()}", file.getvalue()))
    return found


def bands():
    """Files of 12 bands."""
    np.save(array := io.BytesIO(), values := PIXELS[..., [0, 1, 2] * 4].astype(np.uint16))
    found = [(".npy", array.getvalue())]
    for compression in (None, "deflate"):
        for planar in ("contig", "separate"):
            stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
            options = dict(photometric="minisblack", planarconfig=planar, compression=compression)
            tifffile.imwrite(file := io.BytesIO(), stored, **options)
            found.append((".tif", file.getvalue()))
    return found


def matlab():
    with h5py.File(file := io.BytesIO(), "w") as h5:
        h5["images"] = np.zeros((2, 3, 8, 6), np.uint8)
        h5["labels"] = np.arange(2 * 8 * 6, dtype=np.uint16).reshape(2, 8, 6) % 3
        for label in (1, 2):
            h5[f"#refs#/{label}"] = np.array([[ord(c)] for c in f"thing {label}"], np.uint16)
        references = [h5[f"#refs#/{label}"].ref for label in (1, 2)]
        h5.create_dataset("names", data=np.array([references], dtype=h5py.ref_dtype))
    return [(".mat", file.getvalue())]


ROW = dict.fromkeys(COLUMNS, 0.5) | {"epoch": 1, "step": 4}
METADATA = {"implementation": "lowlevel", "config": RUN.as_dict(), "step": 4, "epoch": 1}
METADATA |= {"losses": [0.5], "rows": [ROW]}


def checkpoint(metadata=METADATA):
    weights = initial_weights(RUN.network)
    moments = {f"{name}/m": value for name, value in weights.items()}
    tensors = {**weights, **moments, "iterations": np.int64(4)}
    tensors = {name: np.asarray(value) for name, value in tensors.items()}
    return save(tensors, {key: json.dumps(value) for key, value in metadata.items()})


# --- how ---


def mended(data):
    """A PNG with the checksums that belong to its chunks, so that damage reaches the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + n]
        if n > len(data) or len(body) < 4 + n:
            break
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + n
    return out + data[at:]


def damaged(data, rng):
    """One to four changes of the kind that disks, networks and editors make, and malice."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64))
        if rng.random() < 0.5:
            i = min(i, rng.randrange(200))  # headers say the most
        number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1))
        start, length, new = rng.choice(
            (
                (i, 1, bytes(b ^ 1 << rng.randrange(8) for b in data[i : i + 1])),
                (i, n, rng.randbytes(n)),
                (i, n, b""),
                (i, 0, data[i : i + n] * rng.randint(1, 3)),
                (i, len(data), b""),
                (i, 4, struct.pack(rng.choice("<>") + "I", number)),
                (i, n, bytes([rng.choice((0, 255, 127, 34, 123, 91))]) * n),
            )
        )
        data[start : start + length] = new
    return bytes(mended(data) if data[:4] == b"\x89PNG" and rng.random() < 0.7 else data)


SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from([2**31, 2**63, 10**40, -1, 0]) | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def places(value, path=()):
    """The path of every value in JSON, as keys and indices."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def retyped(value, at, other):
    """`value` with something else in one of its places."""
    path = list(places(value))[at % len(list(places(value)))]
    if not path:
        return other
    changed = inner = copy.deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other
    return changed


DEEP = b"[" * 100_000  # within Python's limits json.loads takes no such thing


# --- the readers: (function of a folder and a file in it, seeds by suffix, whether they are JSON) ---


def read_pixels(path):
    count_pages(path)
    for channels in (1, 3):
        read_image(path, channels)


def read_bands(path):
    count_bands(path)
    read_image(path, 12)


def read_rooms(path):
    config = Config.of(dataset="nyuv2", data_dir=path)
    layout = find_layout(config)
    for item in layout.items[:3]:
        layout.read(item, 3, None)


def read_table(path):
    masks_of(Config.of(dataset="folder", data_dir=path.parent, colors=path), None)


def read_lists(path):
    items = [Item(f"images/{i}.png", Path(f"{i}.png"), Path(f"{i}.png")) for i in range(4)]
    split(items, Config.of(dataset="folder", data_dir=path.parent, split=path))


def as_json(value):
    return json.dumps(value).encode()


HISTORY = (",".join(COLUMNS) + "\n" + ",".join(map(str, ROW.values())) + "\n").encode()
COLOURS = b"sky 128 128 128\nroad marking 128 64 128\nvoid 0 0 0 # nothing\n"
SPLIT = {"train": ["0", "images/1.png"], "val": ["2", "3"]}
RING = [[1, 1, 6, 1, 6, 6], [2, 2, 4, 2, 4, 4]]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}],
    "categories": [{"id": 1, "name": "cell"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "segmentation": outline}
        for outline in (RING, {"counts": [3, 4, 65], "size": [8, 9]}, {"counts": "51g1", "size": [8, 9]})
    ],
}
SHAPES = [{"label": "cell", "points": np.reshape(RING[0], (3, 2)).tolist()}]
SHAPES += [{"label": "dog", "points": [[1, 1], [3, 4]], "shape_type": kind} for kind in ("rectangle", "circle")]
LABELME = {"imagePath": "a.png", "imageHeight": 8, "imageWidth": 9, "shapes": SHAPES}
FILES = {
    "images": (read_pixels, images(), None),
    "bands": (read_bands, bands(), None),
    "masks": (read_mask, images(), None),
    "label images": (lambda path: read_objects([path]), images(), None),
    "HDF5": (read_rooms, matlab(), None),
    "checkpoint": (read_checkpoint, [(".safetensors", checkpoint())], None),
    "checkpoint, types": (read_checkpoint, [(".safetensors", checkpoint)], METADATA),
    "config": (lambda path: read_config(path.parent), [("config.json", as_json(RUN.as_dict()))], None),
    "config, types": (lambda path: read_config(path.parent), [("config.json", as_json)], RUN.as_dict()),
    "split": (read_lists, [("split.json", as_json(SPLIT))], None),
    "split, types": (read_lists, [("split.json", as_json)], SPLIT),
    "history": (lambda path: read_history(path.parent), [("history.csv", HISTORY)], None),
    "colors": (read_table, [("colors.txt", COLOURS)], None),
    "outlines": (read_outlines, [("coco.json", as_json(COCO)), ("labelme.json", as_json(LABELME))], None),
    "outlines, types": (read_outlines, [("coco.json", as_json)], COCO),
    "shapes, types": (read_outlines, [("labelme.json", as_json)], LABELME),
}


class Hung(BaseException):
    """A reader has not come back: no `except Exception` on its way hides it."""


def hang(*_):
    raise Hung


class Tried:
    """What came of the inputs so far."""

    def __init__(self, folder, seed):
        self.folder, self.seed = folder, seed
        self.counts, self.faults, self.slowest = {}, [], 0.0
        signal.signal(signal.SIGALRM, hang)

    def call(self, name, what, function, *arguments):
        """Runs a reader. what: the input, for who looks for a fault."""
        (self.folder / "at work").write_text(f"{name}\n{what!r}"[:100_000], errors="backslashreplace")
        count = self.counts.setdefault(name, {"inputs": 0, "taken": 0, "refused": 0})
        count["inputs"] += 1
        started, fault = time.perf_counter(), None
        signal.alarm(3 * SECONDS)
        try:
            function(*arguments)
            count["taken"] += 1
        except UserError as error:
            count["refused"] += 1
            if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
                fault = f"a message of more than a line: {str(error)[:300]!r}"
        except SystemExit as error:  # --help
            fault = error.code and f"exit {error.code}"
        except BaseException:
            fault = traceback.format_exc(limit=-3)
        signal.alarm(0)
        seconds = time.perf_counter() - started
        self.slowest = max(self.slowest, seconds)
        if seconds > SECONDS:
            fault = f"{seconds:.1f} s"
        if fault:
            self.faults.append([name, repr(what)[:300], fault])
            kept = self.folder.parent / f"fault-{len(self.faults)}"
            shutil.copytree(self.folder, kept, dirs_exist_ok=True)

    def unchanged(self, folder, before, name, what):
        after = snapshot(folder)
        if after != before:
            self.faults.append(
                [name, repr(what)[:300], f"changed on disk: {sorted(before.keys() ^ after.keys()) or 'content'}"]
            )


def snapshot(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != "at work"}


def try_files(tried, rng, inputs):
    for name, (reader, seeds, value) in FILES.items():
        folder = tried.folder / name.replace(", ", "-")
        folder.mkdir()

        def attempt(suffix, data, name=name, reader=reader, folder=folder):
            path = folder / (f"file{suffix}" if suffix.startswith(".") else suffix)
            path.write_bytes(data)
            before = snapshot(folder)
            tried.call(name, data, reader, path)
            tried.unchanged(folder, before, name, data)

        if value is None:
            for _ in range(inputs):
                suffix, data = rng.choice(seeds)
                attempt(suffix, damaged(data, rng) if rng.random() > 0.01 else DEEP)
            continue
        suffix, write = seeds[0]
        with_value(tried.seed, inputs, functools.partial(attempt_value, attempt, suffix, write, value), value)


def attempt_value(attempt, suffix, write, value, at, other):
    try:
        data = write(retyped(value, at, other))
    except (TypeError, AttributeError):  # a checkpoint's metadata is a dictionary by its format
        return
    attempt(suffix, data)


def with_value(seed, inputs, function, value):
    """Calls `function(place, value of any kind)` as often as `inputs` says."""
    top = len(list(places(value))) - 1

    @seeded(seed)
    @settings(
        max_examples=inputs, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, top), VALUES)
    def run(at, other):
        function(at, other)

    run()


def try_cache(tried, rng, inputs):
    """Damage to both files of a cache, while its key stays."""
    folder = tried.folder / "cache"
    folder.mkdir()
    (folder / "item").write_text("0")
    items = [Item(f"{i}", folder / "item", folder / "item") for i in range(3)]
    layout = Layout(items, lambda item, channels, size: (PIXELS[..., :1], PIXELS[..., 1]))
    config = Config.of(dataset="folder", data_dir=folder, cache=folder / "kept")
    cache.prepare(layout, items, 1, config)
    (kept,) = (path for path in (folder / "kept").iterdir() if path.is_dir())
    seeds = {path: path.read_bytes() for path in kept.iterdir()}

    def read():
        prepared = cache.prepare(layout, items, 1, config)
        for i in range(3):
            if i not in prepared.left_out:
                prepared.image(i), prepared.mask(i)

    for _ in range(inputs):
        path = rng.choice(sorted(seeds))
        data = damaged(seeds[path], rng)
        path.write_bytes(data)
        before = snapshot(kept)
        tried.call("cache", data, read)
        after = snapshot(kept)
        if after != before and after.keys() != before.keys():
            tried.faults.append(["cache", repr(data)[:300], "files came or went"])
        path.write_bytes(seeds[path])


WORDS = ["", "0", "-1", "1e400", "nan", "9" * 400, "\x1b[2J", "a\nb", "é", "\udcff", "--", "=1+1", "../..", "/dev/null", "8x8"]
WORDS += ["16x16", "lowlevel", "folder", "balanced", "1epoch", "x" * 5000, "[(", "1,2,3"]
WORDS += ["%s", "{}", "3", "0.5", "paper", "same"]


def try_command_lines(tried, rng, inputs):
    """Options and values in any order: nothing is run."""
    from common.config import FIELDS, flag

    flags = [flag(name) for name in FIELDS] + ["--preset", "--output", "--checkpoint", "--export", "--evaluate", "--tile"]
    flags += ["--rounds", "--steps", "--all", "--tta", "--overlay", "--no-jit", "--save", "--against", "--unknown"]
    readers = {
        "predict.py": predict.read_command_line,
        "compare.py": compare.read_command_line,
        "train": lambda argv: read_command_line("lowlevel", argv, ""),
    }
    for _ in range(inputs):
        name = rng.choice(sorted(readers))
        argv = [rng.choice(flags) if rng.random() < 0.5 else rng.choice(WORDS) for _ in range(rng.randint(0, 8))]
        argv = [rng.choice(sorted(compare.COMMANDS)), *argv] if name == "compare.py" and rng.random() < 0.7 else argv
        argv = [str(tried.folder / "run") if before == "--run-dir" else word for before, word in zip(["", *argv], argv)]
        tried.call("command line", (name, argv), readers[name], argv)


def main(folder, seed, inputs):
    folder, seed, each = Path(folder), int(seed), -(-int(1.2 * int(inputs)) // (len(FILES) + 2))  # some values make no file
    warnings.simplefilter("ignore")
    (folder / "work").mkdir()
    tried, rng = Tried(folder / "work", seed), random.Random(seed)
    try_files(tried, rng, each)
    try_cache(tried, rng, each)
    try_command_lines(tried, rng, each)
    # not ru_maxrss, which begins with that of the process that started this one
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
    found = {"seed": seed, "counts": tried.counts, "slowest": tried.slowest, "peak_GiB": peak, "faults": tried.faults}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
