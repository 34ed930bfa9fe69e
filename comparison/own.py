"""A column of the reader's own: a folder with model.py and perhaps train.py, imported as a package of its own name."""

import contextlib
import importlib
import importlib.util
import itertools
import re
import sys
import traceback
from pathlib import Path

from common.config import IMPLEMENTATIONS, UserError

MODEL, TRAIN = ("UNet", "named_weights"), ("make_optimizer", "named_state")  # the names of the contract


def short(name):
    """A column's name in tables: of a folder its last part."""
    return name if name in IMPLEMENTATIONS else Path(name).resolve().name


def load(folder):
    """{name: value} of all that stands in train.py, if there is one, and in model.py, which counts where both have a name.

    Raises: UserError for a folder that is no column, with what it lacks.
    """
    path, package = Path(folder).resolve(), short(folder)
    if not (path / "model.py").is_file():
        raise UserError(f"--column {folder}: there is no {Path(folder) / 'model.py'}")
    spec = getattr(sys.modules.get(package), "__spec__", None)
    spec = spec or (importlib.util.find_spec(package) if package.isidentifier() else None)
    if not package.isidentifier() or spec and str(path) not in map(str, spec.submodule_search_locations or ()):
        why = "Python knows another package of that name" if spec else "that is no name of a package"
        raise UserError(f"--column {folder}: {why}; rename the folder, as my_column")
    if package not in sys.modules:
        init, places = path / "__init__.py", [str(path)]
        spec = importlib.util.spec_from_file_location(package, init, submodule_search_locations=places)
        sys.modules[package] = importlib.util.module_from_spec(spec)
        if init.is_file():
            with blamed(folder):
                spec.loader.exec_module(sys.modules[package])
    names = {}
    for module, wanted in (("model", MODEL), ("train", TRAIN)):
        if not (path / f"{module}.py").is_file():
            continue
        with blamed(folder):
            found = vars(importlib.import_module(f"{package}.{module}"))
        if lacks := [name for name in wanted if name not in found]:
            raise UserError(f"{Path(folder) / module}.py lacks {' and '.join(lacks)}")
        names = found | names
    if "make_optimizer" in names and not {"make_train_step", "SegmentationLoss"} & names.keys():
        raise UserError(f"{Path(folder) / 'train.py'} lacks make_train_step, or a SegmentationLoss to compile with")
    return names


def check_shapes(of, found, wanted):
    """Raises: UserError that says by name how the shapes `found` differ from those `wanted`, name -> shape, if they do.

    of: what holds them, for the message.
    """
    words = [f"lacks {name}" for name in wanted if name not in found]
    words += [f"has {name}, which the network has not" for name in found if name not in wanted]
    for name in (name for name in wanted if name in found and tuple(found[name]) != tuple(wanted[name])):
        is_, should = tuple(found[name]), tuple(wanted[name])
        orders = (o for o in itertools.permutations(range(len(should))) if tuple(is_[k] for k in o) == should)
        fits = next(orders, None) if len(is_) == len(should) else None
        words.append(f"has {name} of shape {is_}, not {should}" + (f": transposed by {fits} it fits" if fits else ""))
    if words:
        more = f"; and so on, {len(words)} in all" if len(words) > 3 else ""
        raise UserError(f"{of} {'; '.join(words[:3])}{more}")


@contextlib.contextmanager
def blamed(implementation):
    """While this is open, an error in a reader's own column becomes a UserError with file and line of theirs."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if implementation in IMPLEMENTATIONS:
            raise
        raise UserError(blame(implementation, error)) from None


def blame(folder, error):
    """What went wrong in one line: the innermost line of the folder that led to `error`, and what that says."""
    path, text = Path(folder).resolve(), str(error)
    places = [(frame.filename, frame.lineno, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    # what runs in a graph tells where it was written; what Python cannot read has no frame
    places += [(file, number, "") for file, number in re.findall(r'File "([^"]+)", line (\d+)', text)]
    places += [(error.filename, error.lineno, (error.text or "").strip())] if isinstance(error, SyntaxError) else []
    ours = [place for place in places if Path(place[0]).is_relative_to(path)]
    words = " ".join(re.split(r"Detected at node|\n\nStack trace|\(<unknown>|\(\w+\.py, line", text)[0].split())[:300]
    where = folder
    if ours:
        file, number, line = ours[-1]
        where = f"{Path(folder) / Path(file).relative_to(path)}:{number}{f', {line}' if line else ''}"
    return f"{where}: {type(error).__name__}: {words}"
