"""What is written: every file whole or not at all, and none in the place of somebody else's.

A file is written beside its name and moved there when it is finished. What may be replaced is known by where it lies, and is
settled before the work begins: a run has a folder of its own (`training.folder`), and so have the results of compare.py
(`take_results`); any other file that is there already is replaced with --overwrite only (`prepare`).
"""

import contextlib
import csv
import fcntl
import json
import os
import re
import tempfile
import uuid
from pathlib import Path

from common.config import UserError

PART = re.compile(r"\.unet-[0-9a-f]{32}(\.\w+)?")  # the name of what is not finished
RESULTS = "results-of-compare"
ABOUT = "compare.py wrote what lies here. Its next command replaces results of the same name: keep nothing else here.\n"


def try_lock(path):
    """The open file `path`, which no other process has locked, or None. Closing it lets go, and so does dying."""
    file = open(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return file.close()
    return file


def is_part(path):
    """Whether a process that was killed has left the file."""
    return bool(PART.fullmatch(path.name))


@contextlib.contextmanager
def replacing(path):
    """A path to write to, which becomes `path` at the end. If anything fails, what was at `path` stays.

    Raises: OSError that names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".unet-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror or " ".join(str(error).split()), str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text in UTF-8, whole or not at all; of a name that is none, json.loads reads back the same name."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, value, indent=2):
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_csv(path, rows):
    """Writes the header and the other `rows`, each a sequence, whole or not at all."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def refuse_file(folder, option=""):
    """Raises: UserError where `folder` is to be, or one around it, and a file is."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        kind = "a file" if there.is_file() else "no folder"
        raise UserError(f"cannot write to {option}{folder}: {there} is {kind}: name a folder, or move it away")


def refuse_existing(paths, overwrite=None):
    """Raises: UserError for the first of `paths` where something is already; with `overwrite`, that is no file.

    And where a file is in the place of their folder.

    overwrite: whether files that are there are to be replaced; None where the command has no such option.
    """
    more = "" if overwrite is None else " and is no file" if overwrite else " (--overwrite replaces files)"
    for path in paths:
        if os.path.lexists(path) and not (overwrite and path.is_file() and not path.is_symlink()):
            raise UserError(f"{path} is there already{more}: move it away, or write to another place")
        refuse_file(path.parent)


def prepare(paths, overwrite=None):
    """`refuse_existing`, and makes the folders of `paths`. Raises: UserError for one that cannot be written, too."""
    refuse_existing(paths := list(paths), overwrite)
    for folder in {path.parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None


def take_results(folder):
    """Makes the folder of results of compare.py, which are replaced by the next ones of the same name.

    Raises: UserError for a folder that holds anything, and was not made so.
    """
    refuse_file(folder)
    mark, found = folder / RESULTS, [path.name for path in folder.glob("*") if not is_part(path)]
    if found and not (mark.is_file() and mark.read_bytes() == ABOUT.encode()):
        raise UserError(f"{folder} holds {found[0]}, and was not made by compare.py: name a new folder")
    write_text(mark, ABOUT)
