"""The decoded images on disk: what is read back, when it is made again, and what happens to a process that dies."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.config import ColorTable, Config, Size, UserError
from data import cache
from data.cache import prepare
from data.layouts import Item, Layout
from tests.helpers import ROOT, refused

import numpy as np
import pytest

SIZES = [(5, 7), (5, 7), (3, 4), (9, 2), (6, 6)]


def layout_of(folder, read=None):
    """Five items whose files hold their number; each decoding is one more line in `folder/decoded`."""
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(len(SIZES)):
        path = folder / f"{i}.bin"
        if not path.exists():
            path.write_text(str(i))
        items.append(Item(f"images/{i}.bin", path, path))

    def decode(item, channels, size):
        with open(folder / "decoded", "a") as log:
            log.write("x")
        i = int(item.image.read_text())
        rng = np.random.default_rng(i)
        shape = size or SIZES[i % 5]
        return rng.integers(0, 256, (*shape, channels), np.uint8), rng.integers(0, 3, shape, np.uint8)

    return Layout(items, read or decode)


def decoded(folder):
    return len((folder / "decoded").read_text()) if (folder / "decoded").exists() else 0


def config(tmp_path, name="cache", **options):
    return Config.of(dataset="folder", data_dir=tmp_path, cache=name and tmp_path / name, **options)


@pytest.mark.parametrize("name", [None, "cache"])
@pytest.mark.parametrize("size", [None, Size(4, 8)])
@pytest.mark.parametrize("kinds", [[np.uint8] * 5, [np.uint8, np.uint16, np.uint8, np.float32, np.uint16]])
def test_what_goes_in_comes_out(tmp_path, name, size, kinds):
    """8 bits, 16 bits and floats."""
    eight = layout_of(tmp_path / "files")

    def read(item, channels, size):
        image, mask = eight.read(item, channels, size)
        kind = kinds[int(item.name[-5])]
        return (image if kind == np.uint8 else image.astype(kind) * kind(257)), mask

    layout = Layout(eight.items, read)
    for _ in range(2):  # the second time from the cache
        prepared = prepare(layout, layout.items, 3, config(tmp_path, name, image_size=size, depth=1))
        assert prepared.index["bits"].tolist() == [8 * kind().itemsize for kind in kinds]
        for i, item in enumerate(layout.items):
            image, mask = read(item, 3, size)
            assert prepared.image(i).dtype == image.dtype and prepared.index["brightest"][i] == image.max()
            np.testing.assert_array_equal(prepared.image(i), image)
            np.testing.assert_array_equal(prepared.mask(i), mask)
            np.testing.assert_array_equal(prepared.index["counts"][i], np.bincount(mask.ravel(), minlength=256))
            assert prepared.size(i) == mask.shape
    assert decoded(tmp_path / "files") == len(SIZES) * (2 + (1 if name else 2))


def test_a_change_makes_a_new_cache(tmp_path):
    """Which options are part of the key is below."""
    folder = tmp_path / "files"
    layout = layout_of(folder)

    def made(channels=1, **options):
        before = decoded(folder)
        prepare(layout, layout.items, channels, config(tmp_path, **options))
        return decoded(folder) > before

    assert made() and not made() and made(channels=3)
    assert not made(validation=0.5, augment="none", batch_size=2, seed=7), "these do not change a pixel"
    changed = layout.items[0].image
    status = changed.stat()
    changed.write_text("7")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert made(), "as long as before, of the same time"
    assert not made(channels=1) and len(prepare(layout, layout.items[:4], 1, config(tmp_path)).index) == 4


def test_bad_files_stop_it_or_are_left_out_until_they_can_be_read(tmp_path):
    """Memory was short, or a permission was missing: nothing in the files tells."""
    good, bad = layout_of(tmp_path / "files"), ["images/1.bin", "images/4.bin"]

    def read(item, channels, size):
        if item.name in bad:
            raise UserError(f"cannot read {item.image}")
        return good.read(item, channels, size)

    layout = Layout(good.items, read)
    with pytest.raises(UserError, match=r"cannot read .*1\.bin \(--skip-bad goes on without it\)"):
        prepare(layout, layout.items, 1, config(tmp_path))
    assert [path.name[-5:] for path in (tmp_path / "cache").iterdir()] == [".lock"]
    with pytest.raises(UserError, match="none of 2 images can be read"):
        prepare(layout, [layout.items[1], layout.items[4]], 1, config(tmp_path, skip_bad=True))
    for left_out in ([1, 4], [1, 4], [4], []):  # the second time from the cache
        bad[:] = [f"images/{i}.bin" for i in left_out]
        prepared = prepare(layout, layout.items, 1, config(tmp_path, skip_bad=True))
        assert list(prepared.left_out) == left_out and all(f"{i}.bin" in prepared.left_out[i] for i in left_out)
        for i in {1, 3} - {*left_out}:
            np.testing.assert_array_equal(prepared.image(i), good.read(good.items[i], 1, None)[0])


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    """The rename is where the cache comes to be; a disk may be full at any write before it."""
    layout = layout_of(tmp_path / "files")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused("cannot keep the decoded images in ", "cache: No space left on device; ", " GiB are free"):
        prepare(layout, layout.items, 1, config(tmp_path))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_under_the_temporary_file(tmp_path, monkeypatch):
    layout = layout_of(tmp_path / "files")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda buffering: open("/dev/full", "r+b", buffering=0))
    with refused("No space left on device"):
        prepare(layout, layout.items, 1, config(tmp_path, None))


def kept(tmp_path):
    """-> (layout, the folder of its cache)"""
    layout = layout_of(tmp_path / "files")
    prepare(layout, layout.items, 1, config(tmp_path))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    return layout, folder


def test_damaged_pixels_are_noticed(tmp_path):
    """Cut short, or a bit in an image, in a mask, ..., in the last byte."""
    layout, folder = kept(tmp_path)
    content = (folder / "pixels").read_bytes()
    (folder / "pixels").write_bytes(content[:10])
    with refused(f"the cache {folder} is damaged ", "cut short", ": remove it"):
        prepare(layout, layout.items, 1, config(tmp_path))
    for position in (0, 17, 41, -1):
        spoilt = bytearray(content)
        spoilt[position] ^= 1
        (folder / "pixels").write_bytes(spoilt)
        with refused("the pixels of images/", ".bin are not those that were written"):
            prepare(layout, layout.items, 1, config(tmp_path))


def test_a_finished_cache_needs_nothing_to_be_written(tmp_path, monkeypatch):
    """As on a disk that is shared read-only; as root everything can be written, so the system's answer is played."""
    layout, _ = kept(tmp_path)

    def deny(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", deny)
    monkeypatch.setattr(cache, "try_lock", deny)
    prepare(layout, layout.items, 1, config(tmp_path))
    with refused("cannot keep the decoded images in ", "Read-only file system"):
        prepare(layout, layout.items, 3, config(tmp_path))


def test_a_file_in_the_place_of_the_cache(tmp_path):
    layout = layout_of(tmp_path / "files")
    for name in ("f", "f/below"):
        (tmp_path / "f").write_text("")
        with refused("f is a file: name a folder"):
            prepare(layout, layout.items, 1, config(tmp_path, name))


def test_what_was_just_decoded_is_not_checked(tmp_path, monkeypatch):
    layout = layout_of(tmp_path / "files")
    monkeypatch.setattr(cache.Prepared, "is_whole", lambda *_: pytest.fail("read anew"))
    prepare(layout, layout.items, 1, config(tmp_path))


def test_pixels_follow_from_these_options(tmp_path):
    """Each of them makes another cache; the folder of the data set may move with its name."""
    layout = layout_of(tmp_path / "files")
    of, text = dict(dataset="folder", data_dir=tmp_path), "a 0 0 0\nb 1 1 1\n"
    options = [{}, dict(image_size=Size(16, 16)), dict(skip_bad=True), dict(objects=True), dict(objects=True, void_label=255)]
    options += [dict(colors=ColorTable(text), **more) for more in ({}, dict(void_label=255))] + [dict(void_label=-1)]
    options += [dict(colors=ColorTable(text.replace("b", "c"))), dict(dataset="nyuv2"), dict(dataset="nyuv2", classes=4)]
    configs = [Config.of(**{**of, **more}) for more in [*options, dict(dataset="isbi")]]
    keys = [cache._key(layout.items, 1, config) for config in configs] + [cache._key(layout.items, 3, configs[0])]
    keys += [cache._key(layout.items[:4], 1, configs[0])]
    paged = [dataclasses.replace(item, page=1) for item in layout.items]
    further = [dataclasses.replace(item, further=(item.image,)) for item in layout.items]
    keys += [cache._key(items, 1, configs[0]) for items in (paged, further)]
    assert len(set(keys)) == len(keys)
    assert cache._key(layout.items, 1, Config.of(**of, void_label=3)) == keys[0], "is found in what is read"


SLOW = """
import sys, time
from pathlib import Path
from tests.test_cache import config, layout_of
from data.cache import prepare
from data.layouts import Layout

folder = Path(sys.argv[1])
layout = layout_of(folder / "files")
def slow(item, channels, size):
    time.sleep(float(sys.argv[2]))
    return layout.read(item, channels, size)
(folder / sys.argv[3]).touch()
prepare(Layout(layout.items, slow), layout.items, 1, config(folder))
"""


def test_killed_half_way_and_two_at_once(tmp_path):
    def start(seconds, name):
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, str(tmp_path), str(seconds), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def wait_for(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    killed = start(0.5, "first")
    wait_for(lambda: decoded(tmp_path / "files") >= 3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = {path.suffix for path in (tmp_path / "cache").iterdir()}
    assert left == {".lock", ".part"}, "killed while it wrote"

    before = decoded(tmp_path / "files")
    both = [start(0.3, "second"), start(0.3, "third")]
    output = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert decoded(tmp_path / "files") == before + len(SIZES), "one decodes, the other waits and reads"
    assert output.count("another process is decoding") <= 1
    left = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert left == ["", ".lock"], "what the killed process left is gone"
