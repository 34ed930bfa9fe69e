"""What is written: whole or not at all, and never over what this project did not write.

Every folder that files are written into gets a folder `.unet/`, which belongs to the project alone. Its file `written` has a
line of JSON for each file that was ever finished beside it: the name, and the SHA-256 of what was in it. A file is replaced
or deleted only if its content is one of those, so whoever edits a file makes it their own. In `.unet/` lies also what is not
finished yet, and the lock of a run.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import time
from pathlib import Path

from common.config import UserError

MARK = ".unet"
HEADER = b'"a line for each file beside this folder that compare.py, predict.py, data.overview or a train script wrote"'
HOST = re.sub(r"\W", "", platform.node())  # hosts that write into one folder may have processes of the same number
PART = r"\d+-"  # process, and then its host and a number or a word, of what is not finished
COUNT = itertools.count()
DAY = 24 * 3600  # seconds: nothing takes so long to be written
EARLIER = {  # the JSON of the version before, and keys that are in it
    "parity.json": {"checks", "losses"},
    "bench.json": {"what", "environment", "limits", "records"},
    "pipeline.json": {"device", "config", "images_per_second", "steps_per_epoch"},
    "loop.json": {"what", "rounds", "steps", "records"},
    "profile.json": {"what", "steps", "records"},
    "graph.json": {"parameters", "forward_flops", "training_flops"},
    "relay.json": {"precision", "alone", "worst", "difference", "tolerance"},
    "overview.json": {"images", "readable", "mask_values", "problems", "advice"},
}
left_as = {}  # path -> its status when this process had written it: saves reading large files once more
read_so_far = {}  # path of `written` -> (its status, bytes read, what `written_in` returns)


def scratch(folder):
    """The path of `folder`'s `.unet/`, which is made if need be. Raises: UserError when something else has that name."""
    mark, written = folder / MARK, folder / MARK / "written"
    if os.path.lexists(mark) and not _is_mark(mark):
        raise UserError(f"{mark} was not made by this project, which needs that name: move it, or name another folder")
    mark.mkdir(parents=True, exist_ok=True)
    if not written.exists():
        part = new_part(mark, "")
        part.write_bytes(HEADER)
        try:
            os.link(part, written)  # at no moment without its header; never over that of another process
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(part, written)
        part.unlink()
    for left in mark.iterdir():  # by processes that were killed, here or on a host that may be gone
        own = re.match(rf"(\d+)-{HOST}-", left.name)
        if own and not _is_running(int(own[1])) or not own and re.match(PART, left.name) and _age(left) > DAY:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return mark


def _age(path):
    with contextlib.suppress(OSError):  # it has gone meanwhile
        return time.time() - path.stat().st_mtime
    return 0


def _is_mark(mark):
    """Whether a folder is a `.unet/`: by the first line of `written`, or because not even that is in it yet."""
    try:
        with open(mark / "written", "rb") as file:
            return file.read(len(HEADER)) == HEADER
    except FileNotFoundError:
        return mark.is_dir() and all(re.match(PART, path.name) for path in mark.iterdir())
    except OSError:
        return False


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def new_part(mark, suffix):
    """A path in the `.unet/` `mark` for what is not finished yet."""
    return mark / f"{os.getpid()}-{HOST}-{next(COUNT)}{suffix}"


@contextlib.contextmanager
def replacing(path):
    """A path to write to, which becomes `path` at the end. If anything fails, what was at `path` stays.

    Raises: UserError when something is there that this project did not write; OSError that names `path`.
    """
    target = Path(path).resolve()
    refuse_foreign([target])
    part = None
    try:
        part = new_part(scratch(target.parent), target.suffix)
        try:
            yield part
            record(target.parent, {target.name: _digest(part)})  # before it has its name: killed in between, both are known
            refuse_foreign([target])  # it may have come meanwhile
            os.replace(part, target)
            left_as[target] = _status(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if error.filename not in (None, str(part)) and MARK not in Path(os.fsdecode(error.filename)).parts:
            raise
        raise OSError(error.errno, error.strerror or " ".join(str(error).split()), str(path)) from None


def write_text(path, text):
    """Writes a text in UTF-8, whole or not at all; of a name that is none, json.loads reads back the same name."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path, rows):
    """Writes the header and the other `rows`, each a sequence, whole or not at all."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def discard(path):
    """Deletes a file, if there is one. Raises: UserError when this project did not write it."""
    refuse_foreign([path])
    Path(path).unlink(missing_ok=True)


def refuse_foreign(paths):
    """Raises: UserError for the first of `paths` where something is that this project did not write."""
    for path in paths:
        if os.path.lexists(path) and not is_ours(path):
            raise UserError(
                f"{path} was not written by this project, or was changed since, so it stays as it is: "
                "move it away, or write into another folder"
            )


def is_ours(path):
    """Whether there is a file, and this project wrote what is in it."""
    path = Path(path).resolve()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        return left_as.get(path) == _status(path) or bool(digests := _digests(path)) and _digest(path) in digests
    except OSError:
        return False


def first_foreign(folder, known="(?!)"):
    """The first thing in `folder`, however deep, that this project did not write there or that was changed since, or None.

    known: a regular expression of paths in `folder` that are the project's without being counted.
    """
    for root, folders, files in os.walk(folder):
        if MARK in folders:
            folders.remove(MARK)
        for name in sorted([*files, *folders]):
            path = Path(root, name)
            is_folder = path.is_dir() and not path.is_symlink()
            counted = _digests(path) or is_counted(path) if is_folder else is_ours(path)
            if not (counted or re.fullmatch(known, str(path.relative_to(folder)))):
                return path
    return None


def record(folder, digests):
    """Adds to what was written in `folder`: name -> SHA-256."""
    with open(folder / MARK / "written", "ab", buffering=0) as file:
        # a line begins with its line feed: one that a full disk cut short spoils no other
        file.write(b"".join(b"\n" + json.dumps([name, digest]).encode() for name, digest in digests.items()))


def record_names(folder, paths):
    """Files in `folder` as they are, as written by this project."""
    record(folder, {path.relative_to(folder).as_posix(): _digest(path) for path in paths})


def count_earlier(folder):
    """Counts as written what compare.py and data.overview of the version before left in `folder`, which kept no count.

    Their JSON is known by its keys; the pictures beside it are drawn from it.
    """
    if is_counted(folder):
        return
    found = []
    for name, keys in EARLIER.items():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            values = json.loads((folder / name).read_bytes())
            values = values[0] if values and isinstance(values, list) else values
            if isinstance(values, dict) and keys <= values.keys():
                pictures = [(folder / name).with_suffix(".png"), *([folder / "roofline.png"] if name == "bench.json" else [])]
                found += [folder / name, *filter(Path.is_file, pictures)]
    if found:
        scratch(folder)
        record_names(folder, found)


def record_all(folder):
    """Everything in `folder` as written by this project: folders too."""
    paths = [path for path in folder.rglob("*") if MARK not in path.relative_to(folder).parts]
    scratch(folder)
    record(folder, {path.relative_to(folder).as_posix(): _digest(path) if path.is_file() else "folder" for path in paths})


def is_counted(folder):
    """Whether this project keeps count of what it wrote in `folder`."""
    return (folder / MARK / "written").is_file() and _is_mark(folder / MARK)


def written_in(folder):
    """Name -> the digests of all that was ever written there under it."""
    path = folder / MARK / "written"
    if not is_counted(folder):
        return {}
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        known, end, names = read_so_far.get(path, (None, 0, {}))
        if known != (status.st_dev, status.st_ino) or end > status.st_size:
            end, names = 0, {}
        file.seek(end)
        added = file.read()
    for line in added.split(b"\n"):
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            name, digest = json.loads(line)
            names.setdefault(name, set()).add(digest)
    read_so_far[path] = (status.st_dev, status.st_ino), end + len(added), names
    return names


def _digests(path):
    """Of all that was written to `path`, by the nearest folder around it that keeps count."""
    for folder in path.parents:
        if (folder / MARK).is_dir():
            return written_in(folder).get(path.relative_to(folder).as_posix(), ())
    return ()


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _status(path):
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
