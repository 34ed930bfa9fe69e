"""Decoded and resized images on disk, as deep as their files: decoded once, in parallel, and read back by number.

A cache is a folder `KEY/` with two files. `pixels` holds image [H, W, C] and mask [H, W] of every item, one behind the other;
`index.npz` an array of `INDEX` with checksums of them, and why an item was left out. KEY is a digest of everything that the
pixels follow from: the names of the files, what is in them, and the options. A file or an option that changes gives another
key, so nothing stale is ever read. The folder gets its name by a rename when all of it is written: a process that is killed
leaves no cache behind, and two that prepare the same wait for each other.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import CORES
from common.config import VOID, Size, UserError
from common.output import refuse_file, try_lock
from common.text import listed
from data.borders import part_touching
from data.files import has_color, nearest, numbered, resized
from data.meaning import as_classes

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

VERSION = 8  # of the format, and of how files are decoded
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}  # of images, by their bits
INDEX = np.dtype(
    [  # what is known of an item; all 0 where it was left out
        ("size", np.int64, 2),  # height and width as they are kept; what follows is of the files, before they are resized
        ("bits", np.int64),  # of the image: 8, 16, or 32 where it holds floats
        ("darkest", np.float64),  # value of the image
        ("middle", np.float64),  # the median of an image of floats
        ("brightest", np.float64),
        ("color", bool),  # whether the image has three channels that are not the same
        ("parts", np.int64),  # how many connected ones of one value the mask has, where it holds more than 3 values
        ("highest", np.int64),  # number of an object
        ("objects", np.int64),  # how many the mask numbers; 0 where it holds classes
        ("counts", np.int64, 256),  # how many pixels of the mask have each value; 0 and 1 where it numbers objects, parted
        ("checksums", np.int64, 2),  # CRC-32 of the image and of the mask
    ]
)


class Prepared:
    """The decoded items. All items are known by their number, in the order in which they came.

    index: an array of `INDEX`. left_out: {number: reason}. Pixels are read from the file at every call: whatever was read
    before is in the operating system's page cache and not in this process, so memory stays flat.
    """

    def __init__(self, file, channels, mask_type, index, left_out):
        self.file, self.channels, self.mask_type = file, channels, np.dtype(mask_type)
        self.index, self.left_out = index, left_out
        pixels = index["size"].prod(axis=1)
        sizes = [pixels * channels * index["bits"] // 8, pixels * self.mask_type.itemsize]  # bytes of images, of masks
        self.starts = np.cumsum([0, *np.transpose(sizes).ravel()]).tolist()  # of image, mask, image, mask, ...

    def size(self, i):
        return Size(*self.index["size"][i].tolist())

    def _read(self, start, shape, dtype):
        values = np.empty(shape, dtype)
        if os.preadv(self.file.fileno(), [values.reshape(-1).view(np.uint8)], start) != values.nbytes:
            raise UserError(f"the cache {self.file.name} is cut short: remove it")
        return values

    def image(self, i):
        """uint8, uint16 or float32 [H, W, channels], the values of the file"""
        return self._read(self.starts[2 * i], (*self.size(i), self.channels), DTYPES[int(self.index["bits"][i])])

    def mask(self, i):
        """uint8 [H, W], the values of the file, or int32 where they number objects"""
        return self._read(self.starts[2 * i + 1], self.size(i), self.mask_type)

    def is_whole(self, i):
        """Whether image and mask are those that were written."""
        return i in self.left_out or _checksums(self.image(i), self.mask(i)) == self.index["checksums"][i].tolist()


def _checksums(*arrays):
    return [zlib.crc32(np.ascontiguousarray(values)) for values in arrays]


def prepare(layout, items, channels, config):
    """Decodes `items` of `layout`, resized to --image-size if there is one -> `Prepared`.

    With --cache it is read from there if it is there, and kept there otherwise. Without, it lies in a temporary file
    that is gone with the process.

    Raises: UserError for the first file that cannot be read, unless `config.data.skip_bad`; for a disk that is full.
    """
    data, mask_type = config.data, np.int32 if layout.objects else np.uint8
    options = layout, items, channels, data.image_size, data.skip_bad
    if not data.cache:
        with _explained(tempfile.gettempdir()):
            file = tempfile.TemporaryFile(buffering=0)
            return Prepared(file, channels, mask_type, *decode(*options, file))
    folder = data.cache / _key(items, channels, config)
    part, lock = folder.with_suffix(".part"), folder.with_suffix(".lock")
    if found := _kept(folder, layout, items, channels, mask_type, data.image_size):
        return found
    refuse_file(data.cache, "--cache ")
    with _explained(data.cache):
        data.cache.mkdir(parents=True, exist_ok=True)
        with try_lock(lock) or _wait_for(lock):
            if found := _kept(folder, layout, items, channels, mask_type, data.image_size):  # the other process has made it
                return found
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            try:
                part.mkdir()
                with open(part / "pixels", "wb", buffering=0) as file:
                    index, left_out = decode(*options, file)
                    os.fsync(file.fileno())
                np.savez(part / "index.npz", index=index, left_out=np.array(json.dumps(list(left_out.items()))))
                shutil.rmtree(folder, ignore_errors=True)  # of which more can be read by now
                os.rename(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return Prepared(open(folder / "pixels", "rb", buffering=0), channels, mask_type, index, left_out)


def _kept(folder, layout, items, channels, mask_type, size):
    """`Prepared` out of the cache `folder`, or None: where there is none, or where what it left out can be read by now."""
    if not folder.exists():
        return None
    try:
        with np.load(folder / "index.npz") as arrays:
            index, left_out = arrays["index"], dict(json.loads(str(arrays["left_out"])))
        prepared = Prepared(open(folder / "pixels", "rb", buffering=0), channels, mask_type, index, left_out)
        progress = tqdm(range(len(items)), "checking the cache", unit=" images", delay=1, leave=False, disable=None)
        changed = [item.name for item, whole in zip(items, in_parallel(prepared.is_whole, progress)) if not whole]
        if changed:
            raise ValueError(f"the pixels of {listed(changed, 3)} are not those that were written")
    except Exception as error:  # nearly anything may come out of a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the cache {folder} is damaged ({reason}): remove it, and it will be made again") from None
    for number in left_out:  # memory was short, or a permission was missing
        with contextlib.suppress(UserError):
            layout.read(items[number], channels, size)
            return None
    return prepared


def decode(layout, items, channels, size, skip_bad, file=None):
    """Decodes in as many threads as there are cores, writes to `file`, if any, in order -> (array of `INDEX`, left_out).

    Raises: UserError for the first item that cannot be read, unless `skip_bad`, or if none can.
    """
    index, left_out = np.zeros(len(items), INDEX), {}

    def read(item):
        try:
            image, mask = layout.read(item, channels, size)
        except UserError as error:
            return error
        learned = as_classes(part_touching(mask) if layout.objects else mask)
        middle = np.median(image) if image.dtype == np.float32 else 0
        color = channels == 3 and has_color(image[::4, ::4])  # a sixteenth tells
        counts = Image.fromarray(learned).histogram()  # a tenth of the time of np.bincount
        of_file = 8 * image.itemsize, image.min(), middle, image.max(), color, _parts(learned, counts)
        of_objects = (mask.max(), numbered(mask).max()) if layout.objects else (0, 0)
        image, mask = resized(image, size), nearest(mask, size)
        mask = numbered(mask) if layout.objects else mask  # some may be gone
        return image, mask, (mask.shape, *of_file, *of_objects, counts, _checksums(image, mask))

    progress = tqdm(items, "decoding" if file else "reading", unit=" images", delay=1, leave=False, disable=None)
    for i, found in enumerate(in_parallel(read, progress)):
        if not isinstance(found, UserError):
            *arrays, index[i] = found
            for values in arrays if file else ():
                buffer = memoryview(np.ascontiguousarray(values)).cast("B")
                while buffer:  # a write may take less than all
                    buffer = buffer[file.write(buffer) :]
        elif skip_bad:
            left_out[i] = str(found)
        else:
            progress.close()
            raise UserError(f"{found} (--skip-bad goes on without it)")
    if len(left_out) == len(items):
        raise UserError(f"none of {len(items)} images can be read; the first: {left_out[0]}")
    return index, left_out


def _parts(mask, counts):
    """How many connected parts of one value above 0 a mask has, where it may number objects: more than 3 values."""
    if sum(map(bool, counts[1:VOID])) < 4:
        return 0
    from skimage.measure import label  # few trainings need it

    small = mask[:: max(len(mask) // 256, 1), :: max(mask.shape[1] // 256, 1)]
    return label(np.where(small == VOID, 0, small), connectivity=1, return_num=True)[1]


def in_parallel(function, values):
    """`map` in as many threads as there are cores, in order, with few results waiting. Pillow decodes without the GIL."""
    with ThreadPoolExecutor(CORES) as pool:
        pending = collections.deque()
        for value in values:
            pending.append(pool.submit(function, value))
            if len(pending) > 2 * CORES:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)


def _key(items, channels, config):
    """A digest of all that the pixels follow from. What decides only how they are read later is not in it."""
    data, files = config.data, sorted({path for item in items for path in (item.image, *item.masks)})
    void = data.void_label
    described = {
        "version": [VERSION, PIL.__version__],
        "options": [data.dataset, str(data.image_size), channels, data.skip_bad, data.objects],
        "classes": config.network.classes if data.dataset == "nyuv2" else None,  # which maps its values when it reads
        "colors": [data.colors, void is not None] if data.colors is not None else None,
        "void": void if data.objects or not 0 <= (void or 0) <= 255 else None,  # others are found in what is read
        "items": [[item.name, *map(str, map(Path.absolute, (item.image, *item.masks))), item.page] for item in items],
        "files": [[str(file), digest] for file, digest in zip(files, in_parallel(_digest, files))],
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:20]


def _digest(path):
    """Of what is in a file: its size and time may be those of another, as zip and tar unpack them."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:  # --skip-bad may go on without it
        return str(error.strerror)
    return digest.hexdigest()


def _wait_for(path):
    """`try_lock`, once whoever has locked it lets go."""
    print("another process is decoding these images: waiting for it", flush=True)
    fcntl.flock(file := open(path, "w"), fcntl.LOCK_EX)
    return file


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
