"""Decoded and resized images on disk, as deep as their files: decoded once, in parallel, and read back by number.

A cache is a folder `KEY/` with two files. `pixels` holds image [H, W, C] and mask [H, W] of every item, one behind the other;
`index.npz` their `Index`, with a checksum of every image and mask, and what could not be read. KEY is a digest of everything
that the pixels follow from: the files' names, sizes and times of change, and the options. A file or an option that changes
gives another key, so nothing stale is ever read. The folder gets its name by a rename when all of it is written: a process
that is killed leaves no cache behind, and two that prepare the same wait for each other.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from common.cli import listed
from common.config import Size, UserError
from data.borders import part_touching
from data.files import floats_in, image_files
from data.meaning import as_classes

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

VERSION = 6  # of the format, and of how files are decoded
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Index(NamedTuple):
    """What is known of n decoded items, int64; 0 for what was left out."""

    sizes: np.ndarray  # [n, 2], height and width
    bits: np.ndarray  # [n], 8 or 16 of the image
    peaks: np.ndarray  # [n], the brightest value of the image
    floats: np.ndarray  # [n], 1 where the file holds floats
    cuts: np.ndarray  # [n], what percent of its floats are white or above
    counts: np.ndarray  # [n, 256], how many pixels of the mask have each value; 0 and 1 where it numbers objects, parted
    objects: np.ndarray  # [n], how many the mask numbers; 0 where it holds classes
    checksums: np.ndarray  # [n, 2], CRC-32 of the image and of the mask

    @classmethod
    def empty(cls, n):
        return cls(*(np.zeros((n, *shape), np.int64) for shape in ((2,), (), (), (), (), (256,), (), (2,))))


class Prepared:
    """The decoded items. All items are known by their number, in the order in which they came.

    sizes: list of `Size`, None for what was left out. bits to checksums: as `Index` has them.
    left_out: {number: reason}. Pixels are read from the file at every call: whatever was read before is in the operating
    system's page cache and not in this process, so memory stays flat.
    """

    def __init__(self, file, channels, mask_type, index, left_out):
        self.file, self.channels, self.mask_type, self.left_out = file, channels, np.dtype(mask_type), left_out
        sizes, self.bits, self.peaks, self.floats, self.cuts, self.counts, self.objects, self.checksums = index
        self.sizes = [Size(*size) if all(size) else None for size in sizes.tolist()]
        bytes_per_pixel = channels * self.bits // 8 + self.mask_type.itemsize
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * bytes_per_pixel)]).tolist()

    def _read(self, start, shape, dtype=np.uint8):
        values = np.empty(shape, dtype)
        if os.preadv(self.file.fileno(), [values.reshape(-1).view(np.uint8)], start) != values.nbytes:
            raise UserError(f"the cache {self.file.name} is cut short: remove it")
        return values

    def image(self, i):
        """uint8 or uint16 [H, W, channels], the values of the file"""
        return self._read(self.starts[i], (*self.sizes[i], self.channels), np.uint8 if self.bits[i] == 8 else np.uint16)

    def mask(self, i):
        """uint8 [H, W], the values of the file, or int32 where they number objects"""
        height, width = self.sizes[i]
        return self._read(self.starts[i + 1] - self.mask_type.itemsize * height * width, (height, width), self.mask_type)

    def is_whole(self, i):
        """Whether image and mask are those that were written."""
        return self.sizes[i] is None or [_checksum(self.image(i)), _checksum(self.mask(i))] == self.checksums[i].tolist()


def _checksum(values):
    return zlib.crc32(np.ascontiguousarray(values))


def prepare(layout, items, channels, config):
    """Decodes `items` of `layout`, resized to --image-size if there is one -> `Prepared`.

    With --cache it is read from there if it is there, and kept there otherwise. Without, it lies in a temporary file
    that is gone with the process.

    Raises: UserError for the first file that cannot be read, unless `config.data.skip_bad`; for a disk that is full.
    """
    mask_type = np.int32 if layout.objects else np.uint8
    if not config.data.cache:
        with _explained(tempfile.gettempdir()):
            file = tempfile.TemporaryFile(buffering=0)
            return Prepared(file, channels, mask_type, *_decode_all(layout, items, channels, config, file))
    folder = config.data.cache / _key(items, channels, config)
    with _explained(config.data.cache):
        config.data.cache.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock")):
            if not folder.exists():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                part.mkdir()
                try:
                    with open(part / "pixels", "wb", buffering=0) as file:
                        index, left_out = _decode_all(layout, items, channels, config, file)
                        os.fsync(file.fileno())
                    numbers, reasons = np.array(list(left_out), np.int64), np.array(list(left_out.values()), np.str_)
                    np.savez(part / "index.npz", **index._asdict(), numbers=numbers, reasons=reasons)
                    os.rename(part, folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    try:
        return _open(folder, channels, mask_type, items)
    except Exception as error:  # nearly anything may come out of a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the cache {folder} is damaged ({reason}): remove it, and it will be made again") from None


def _open(folder, channels, mask_type, items):
    """The `Prepared` in a cache. Raises: ValueError, or nearly anything, for one that `prepare` did not write so."""
    empty = Index.empty(len(items))
    with np.load(folder / "index.npz") as arrays:
        index, numbers, reasons = Index(*(arrays[name] for name in Index._fields)), arrays["numbers"], arrays["reasons"]
    for name, found, expected in zip(Index._fields, index, empty):
        if found.dtype != expected.dtype or found.shape != expected.shape or (found < 0).any():
            raise ValueError(f"{name} of index.npz do not belong to {len(items)} images")
    if numbers.dtype != np.int64 or reasons.dtype.kind != "U":
        raise ValueError("what was left out is no number and text")
    left_out = {int(i): str(reason) for i, reason in zip(numbers, reasons, strict=True)}
    read = np.ones(len(items), bool)
    read[list(left_out)] = False
    if not np.isin(index.bits[read], (8, 16)).all() or (index.sizes.min(axis=1) > 0).tolist() != read.tolist():
        raise ValueError("index.npz has sizes or bits that no image has")
    prepared = Prepared(open(folder / "pixels", "rb", buffering=0), channels, mask_type, index, left_out)
    if os.path.getsize(folder / "pixels") != prepared.starts[-1]:
        raise ValueError("pixels is not as large as index.npz says")
    progress = tqdm(range(len(items)), desc="checking the cache", unit=" images", delay=1, leave=False, disable=None)
    changed = [items[i].name for i, whole in zip(progress, _in_parallel(prepared.is_whole, range(len(items)))) if not whole]
    if changed:
        raise ValueError(f"the pixels of {listed(changed, 3)} are not those that were written")
    return prepared


def _decode_all(layout, items, channels, config, file):
    """Decodes in as many threads as there are cores, writes to `file` in order -> (`Index`, left_out)."""
    index, left_out = Index.empty(len(items)), {}

    def read(item):
        try:
            image, mask = layout.read(item, channels, config.data.image_size)
            floats = floats_in(item.image, image)
            learned = as_classes(part_touching(mask) if layout.objects else mask)
        except UserError as error:
            return error
        return image, mask, floats, Image.fromarray(learned).histogram()  # a tenth of the time of np.bincount

    progress = tqdm(items, desc="decoding", unit=" images", delay=1, leave=False, disable=None)
    for i, found in enumerate(_in_parallel(read, progress)):
        if isinstance(found, UserError):
            if not config.data.skip_bad:
                progress.close()
                raise UserError(f"{found} (--skip-bad goes on without it)")
            left_out[i] = str(found)
            continue
        image, mask, (index.floats[i], index.cuts[i]), index.counts[i] = found
        index.sizes[i], index.bits[i], index.peaks[i] = mask.shape, 8 * image.itemsize, image.max()
        index.objects[i] = mask.max() if layout.objects else 0
        index.checksums[i] = _checksum(image), _checksum(mask)
        for values in (image, mask):
            buffer = memoryview(np.ascontiguousarray(values)).cast("B")
            while buffer:  # a write may take less than all
                buffer = buffer[file.write(buffer) :]
    if len(left_out) == len(items):
        raise UserError(f"none of {len(items)} images can be read; the first: {left_out[0]}")
    return index, left_out


def _in_parallel(function, values):
    """`map` in as many threads as there are cores, in order, with few results waiting. Pillow decodes without the GIL."""
    with ThreadPoolExecutor(CORES) as pool:
        pending = collections.deque()
        try:
            for value in values:
                pending.append(pool.submit(function, value))
                if len(pending) > 2 * CORES:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _key(items, channels, config):
    """A digest of all that the pixels follow from. What decides only how they are read later is not in it."""
    stamps = {}
    for path in {path for item in items for path in (item.image, item.mask)}:
        found = [(file.name, file.stat()) for file in (image_files(path) if path.is_dir() else [path])]
        stamps[path] = [[name, status.st_size, status.st_mtime_ns] for name, status in found]
    described = {
        "version": [VERSION, PIL.__version__],
        "options": [config.data.dataset, str(config.data.image_size), channels, config.data.skip_bad],
        "classes": config.network.classes if config.data.dataset == "nyuv2" else None,  # which maps its values when it reads
        "objects": config.data.objects,
        "float_white": config.data.float_white or 1.0,
        "colors": [config.data.colors, config.data.void_label is not None] if config.data.colors is not None else None,
        "items": [
            [item.name, str(item.image.absolute()), stamps[item.image], str(item.mask.absolute()), stamps[item.mask], item.page]
            for item in items
        ],
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:20]


def try_lock(path):
    """The open file `path`, which no other process has locked, or None. Closing it lets go, and so does dying."""
    file = open(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def _lock(path):
    """One process at a time."""
    file = try_lock(path)
    if not file:
        print("another process is decoding these images: waiting for it", flush=True)
    while not file:
        time.sleep(0.2)
        file = try_lock(path)
    with file:
        yield


@contextlib.contextmanager
def _explained(folder):
    """A full or read-only disk as a line that says what to do."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free if Path(folder).is_dir() else 0
        raise UserError(
            f"cannot keep the decoded images in {folder}: {error.strerror}; {free / 2**30:.1f} GiB are free there: "
            "use --cache DIR on another disk, or a smaller --image-size"
        ) from None
