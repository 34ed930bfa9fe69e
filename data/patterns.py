"""Two patterns say which file is whose mask: `images/{part}/{name}.jpg` and `masks/{part}/{name}_mask.png`.

`{name}` is what an image and its mask have in common, `{part}` is train, val or test in one of their spellings, `{group}` keeps
together what a split must not tear, `*` matches anything in a name and `**` any folders. Where nobody gives them, `guess` does.
"""

import functools
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from common.config import UserError
from common.text import listed
from data.files import EXTENSIONS

PARTS = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val"}
PARTS |= {"testing": "test", "test": "test"}
PART = f"(?i:{'|'.join(PARTS)})"
WORD = r"(?:annot\w*|_?(?:mask|label|image|img|gt)s?)?"  # what may follow a part without a gap: trainannot
MASKS = re.compile(r"mask|label|annot|truth|seg|manual|trimap|matte|target|(?<![a-z])gt(?![a-z])", re.IGNORECASE)
IMAGES = re.compile(r"image|img|photo|jpeg|input|raw|rgb|picture|frame", re.IGNORECASE)
SUFFIX = re.compile(r"[-_. ].*[^\W\d_].*")  # of masks beside their images: _mask, -seg, and not _1, which numbers images
ANNOTATIONS = (".json", ".geojson", ".shp", ".xml", ".kml")  # may hold outlines; and .txt in a folder of labels, as YOLO has it
OF_A_RUN = ("config.json", "split.json")  # JSON that a run writes beside the images that it draws


class Pairs(NamedTuple):
    """What two patterns make of files, all in their order."""

    masks: dict[str, list[str]]  # image -> its masks
    fields: dict[str, dict[str, str]]  # every image, with a mask or without -> what {name}, {part}, {group} matched
    alone: list[str]  # images without a mask, but for those of the test part, and masks without an image


def walk(folder, but=()):
    """The files below `folder` that a person has put there, with "/", sorted; links are followed. Raises: OSError.

    but: folders that are passed over.
    """

    def fail(error):
        raise error

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(root)) in seen or Path(real) in but:  # seen: a link that leads up
            folders.clear()
            continue
        seen.add(real)
        names = [name for name in names if not name.startswith(".") and name.lower() not in ("thumbs.db", "desktop.ini")]
        found += [os.path.relpath(os.path.join(root, name), folder) for name in names]
    return sorted(name.replace(os.sep, "/") for name in found)


def is_image(folder, file):
    """By its name; a link that leads nowhere is one too, and is called that when it is read."""
    path = Path(folder, file)
    return path.suffix.lower() in EXTENSIONS and (path.is_file() or path.is_symlink() and not path.exists())


@functools.lru_cache(4096)
def _compiled(pattern, longest):
    """The regular expression of a pattern whose {name} has so many letters at most."""
    seen, text = set(), ""
    for token in re.split(r"(\{.*?\}|\*\*/|\*+)", pattern):
        field = token[1:-1]
        kinds = {"name": f"[^/]{{1,{longest}}}", "part": PART, "group": "[^/]+"}
        if not token.startswith("{"):
            text += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}.get(token) or re.escape(token)
        elif field not in kinds:
            raise UserError(f"the pattern '{pattern}' has {token}: it takes {{name}}, {{part}}, {{group}}, * and **")
        elif field in seen:
            text += PART if field == "part" else f"(?P={field})"
        else:
            text += f"(?P<{field}>{kinds[field]})"
            seen.add(field)
    if not seen & {"name", "part"}:
        raise UserError(f"the pattern '{pattern}' lacks {{name}}, which an image and its mask have in common")
    return re.compile(text)


def readings(pattern, file):
    """What the fields of `pattern` may be in `file`, the longest {name} first; nothing where it does not fit."""
    longest = len(file := unicodedata.normalize("NFC", file))  # macOS may store é as e and an accent
    while longest > 0 and pattern and (match := _compiled(unicodedata.normalize("NFC", pattern), longest).fullmatch(file)):
        fields = match.groupdict()
        if "part" in fields:
            fields["part"] = PARTS[fields["part"].lower()]
        yield fields
        longest = len(fields.get("name", "")) - 1


def pair(images, masks, files, mask_files=None):
    """Pairs what fits the patterns `images` and `masks` among `files`, or masks among `mask_files`, if given -> `Pairs`.

    A file that fits both is a mask, unless then there were no images. Masks without a `*` belong one to an image.

    Raises: UserError where a name alone does not tell two files apart.
    """
    fields = images_among(images, masks, files) if mask_files is None else images_among(images, "", files)
    rest = [file for file in files if file not in fields] if mask_files is None else mask_files
    shared = [field for field in ("group", "part", "name") if all("{" + field + "}" in text for text in (images, masks))]

    def key(found):
        return tuple(found[field] for field in shared)

    by_key, alone = {}, []
    for file, found in fields.items():
        if other := by_key.get(key(found)):
            raise UserError(_same(images, "--image-files", other, file, "{group} or {part}"))
        by_key[key(found)] = file
    several, of = "*" in re.sub(r"\.\*$|\*\*/?", "", masks), defaultdict(list)
    for file, found in ((file, found) for file in rest if (found := list(readings(masks, file)))):
        image = next(filter(None, (by_key.get(key(reading)) for reading in found)), None)
        if image and of[image] and not several:
            raise UserError(_same(masks, "--mask-files", of[image][0], file, f"a * where they differ, if both are of {image}"))
        if image:
            of[image].append(file)
        else:
            alone.append(f"{file} has no image")
    bare = [f"{file} has no mask" for file, found in fields.items() if not of[file] and found.get("part") != "test"]
    return Pairs({file: of[file] for file in fields if of[file]}, fields, bare + alone)


def images_among(images, masks, files):
    """{file: what the fields of the pattern `images` are in it}, of those that are no masks, unless then there were none."""
    fields = {file: found for file in files if (found := next(readings(images, file), None))}
    only = {file: found for file, found in fields.items() if not next(readings(masks, file), None)}
    return only or fields


def _same(pattern, option, one, other, more):
    return f"{one} and {other} have the same name by {option} '{pattern}': keep one of them, or say more, as {more}"


# --- what nobody says ---


def guess(files):
    """The patterns of a common tree of image `files`, (images, masks), and whether they pair enough; or (None, False).

    Tried is what the folders and the names suggest; what `pair` makes most of is taken, of equals the folders that are called
    images and masks, or the first.

    Raises: UserError, as `pair`, where names are ambiguous and no other patterns pair all.
    """
    best, most, unclear = (None, False), None, None
    for images, masks in dict.fromkeys(_candidates(_folders(files))):
        try:
            found = pair(images, masks, files)
        except UserError as error:
            unclear = unclear or error
            continue
        n, alone, folders = len(found.masks), len(found.alone), [os.path.dirname(pattern) for pattern in (images, masks)]
        called = sum(bool(kind.search(folder)) for kind, folder in zip((IMAGES, MASKS), folders))
        score = n - alone, n, -masks.count("*"), called
        if n and (best[0] is None or score > most):
            apart = folders[0] != folders[1] and n >= sum("no image" in line for line in found.alone)
            best, most = ((images, masks), apart or 2 * n >= len(found.fields)), score
        if not alone and n + sum(map(len, found.masks.values())) == len(files):
            break  # nothing is left over
    if unclear and not (best[1] and most[0] == most[1]):
        raise unclear
    return best


def _folders(files):
    """{a folder with {part}, and {group} or * for one of many: the names in it}, the simplest and fullest first."""
    word = re.compile(rf"(?<![a-z]){PART}(?={WORD}(?![a-z]))", re.IGNORECASE)
    found, standing = defaultdict(list), defaultdict(set)
    for file in files:
        *folders, name = file.split("/")
        folders = [word.sub("{part}", folder) for folder in folders]
        found["/".join(folders)].append(name)
        for i, folder in enumerate(folders):  # patients, videos, cities; a few may as well be kinds of images
            if "{part}" not in folder:
                many = "/".join([*folders[:i], "*", *folders[i + 1 :]])
                found[many].append(name)
                standing[many].add(folder)
    once = {folder: names for folder, names in found.items() if len(standing[folder]) != 1}
    ordered = sorted(once, key=lambda folder: ("*" in folder, -len(once[folder]), len(folder)))
    few = [folder for folder in ordered if "*" not in folder][:12] + [folder for folder in ordered if "*" in folder][:12]
    alike = {folder for folder in few if "*" in folder and len(set(once[folder])) < len(once[folder])}
    grouped = {folder for folder in few if len(standing[folder]) >= 10 and "{part}" not in folder} | alike
    return {folder.replace("*", "{group}") if folder in grouped else folder: once[folder] for folder in few}


def _candidates(folders):
    """(images, masks): patterns for every two of the `folders` of which one may hold the masks of the other."""
    for images, masks in itertools.product(folders, repeat=2):
        stems, ends = zip(*(_split(folders[folder]) for folder in (images, masks)))
        if images == masks:
            affixes = [("", "", *affix) for affix in _beside(*stems)]
            kinds = {os.path.splitext(name)[1] for name in folders[images]}
            jpeg = sorted(kind for kind in kinds if kind.lower() in (".jpg", ".jpeg"))
            for one in itertools.product(jpeg, sorted(kinds.difference(jpeg))):  # photos as JPEG, and masks of another kind
                yield tuple(_joined(images, f"{{name}}{kind}") for kind in one)
        else:
            only = [" ".join(set(a.split("/")) - set(b.split("/"))) for a, b in ((images, masks), (masks, images))]
            if not (MASKS.search(only[1]) or IMAGES.search(only[0])) or MASKS.search(only[0]) and not IMAGES.search(only[0]):
                continue
            affixes = [_affixes(*stems), *(("", "", *affix) for affix in _beside(*stems))]
            affixes = [("", "", "", "")] if set(stems[0]) & set(stems[1]) else affixes
        for a, b, c, d in affixes:
            one = _joined(images, f"{a}{{name}}{b}{ends[0]}")
            yield one, _joined(masks, f"{c}{{name}}{d}{ends[1]}")
            if d:  # a_mask.png and a_mask_1.png
                yield one, _joined(masks, f"{c}{{name}}{d}*{ends[1]}")


def _joined(folder, name):
    return f"{folder}/{name}" if folder else name


def _split(names):
    """-> the stems of names, and their extension, ".*" if there are several"""
    ends = {os.path.splitext(name)[1] for name in names}
    return sorted({os.path.splitext(name)[0] for name in names}), ends.pop() if len(ends) == 1 else ".*"


def _beside(images, masks):
    """What stands before or behind the names of images in those of masks, maybe in the same folder: [(before, after)]."""
    counts = Counter()
    for stem in images[:: max(len(images) // 20, 1)]:
        for name in masks:
            before, found, after = name.partition(stem)
            if found and (not before and SUFFIX.fullmatch(after) or not after and SUFFIX.fullmatch(before[::-1])):
                counts[before, after] += 1
    return sorted(counts, key=lambda affix: (-counts[affix], len("".join(affix)), affix))[:4]


def _affixes(images, masks):
    """What all names of images begin and end with, and all of masks, beyond what both have in common."""
    before = [re.sub(r"\d+$", "", os.path.commonprefix(names)) for names in (images, masks)]
    after = [re.sub(r"^\d+", "", os.path.commonprefix([name[::-1] for name in names])[::-1]) for names in (images, masks)]
    before = before if before[0] != before[1] else ["", ""]
    after = after if after[0] != after[1] else ["", ""]
    return before[0], after[0], before[1], after[1]


# --- what is there ---


def unused(files, used):
    """The `files` that are not `used`, each folder or kind of file once: ["extra/ (12 files)", "images/*.txt (3)", "a.pdf"]."""
    busy = {parent for file in used for parent in _parents(file)} | {""}
    idle, kinds = Counter(), defaultdict(list)
    for file in (file for file in files if file not in used):
        if top := next((parent for parent in _parents(file) if parent not in busy), None):
            idle[top] += 1
        else:
            kinds[os.path.dirname(file), os.path.splitext(file)[1]].append(file)
    found = [f"{folder}/ ({n} file{'s' * (n > 1)})" for folder, n in idle.items()]
    for (folder, kind), names in kinds.items():
        found += names if len(names) < 3 else [f"{_joined(folder, '*')}{kind} ({len(names)})"]
    return found


def _parents(file):
    """The folders of a file, from the top."""
    return list(itertools.accumulate(file.split("/")[:-1], lambda a, b: f"{a}/{b}"))


def inventory(files):
    """What lies there, in words: folders, extensions, and three names of each."""
    kinds = defaultdict(list)
    for file in files:
        kinds[os.path.dirname(file), os.path.splitext(file)[1]].append(file)
    most = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return listed([f"{folder or '.'}/ with {len(names)} {end}: {listed(names, 3)}" for (folder, end), names in most], 6)


def outlines(files):
    """The files that may hold outlines instead of masks, in words with what to do, or ""."""
    found = [file for file in files if Path(file).suffix.lower() in ANNOTATIONS and Path(file).name not in OF_A_RUN]
    found += [file for file in files if re.search(r"label[^/]*/[^/]+\.txt$", file)]
    draw = "may hold outlines: python -m data.polygons FILES --output masks draws masks from COCO and LabelMe JSON"
    return f"{listed(found, 3)} {draw}; save other kinds as masks" if found else ""
