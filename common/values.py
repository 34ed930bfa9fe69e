"""The values of options that are no plain numbers or texts: what the command line and config.json call them, and back."""

import argparse
import contextlib
import os
import re
import typing
from pathlib import Path

VOID = 255  # the class index of pixels that nobody labelled, whatever their value is in the files


def in_float32(value):
    """Whether a number is finite in float32, and 0 if it is 0: what is smaller than 1.2e-38 is flushed to that."""
    return value == 0 or 2**-126 <= abs(value) < 2**128 - 2**103


class UserError(argparse.ArgumentTypeError, ValueError):
    """A mistake that the user can mend. The scripts print it as one line and exit with code 2; argparse shows its words."""


class Size(typing.NamedTuple):
    """An image size in pixels, in array order. On the command line: `WIDTHxHEIGHT`, or one number for a square."""

    height: int
    width: int

    @classmethod
    def parse(cls, text):
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
        if not match or int(match[1]) == 0 or int(match[2] or 1) == 0:
            raise UserError(f"{text!r} is not a size: write WIDTHxHEIGHT, such as 480x320, or one number")
        return cls(height=int(match[2] or match[1]), width=int(match[1]))

    def __str__(self):
        return f"{self.width}x{self.height}"


class Listed(tuple):
    """On the command line with commas between them. A subclass has `each`, which makes one of a text, `fits` and `form`."""

    @classmethod
    def parse(cls, text):
        with contextlib.suppress(ValueError):
            found = cls(map(cls.each, text.split(",")))
            if found.fits():
                return found
        raise UserError(f"{text!r} must be {cls.form}")

    def __str__(self):
        return ",".join(map(str, self))

    def differ(self):
        return len(set(self)) == len(self)


class Names(Listed):
    """Names of classes: `background,cell,nucleus`."""

    each, form = str.strip, "names with commas between them, each once"

    def fits(self):
        return all(self) and self.differ()

    @classmethod
    def of(cls, texts):
        """Names out of any texts: without commas, and those that come again with a number behind them."""
        found = []
        for text in texts:
            name = " ".join(text.replace(",", " ").split()) or "no name"
            again = (f"{name} {k}" for k in range(2, len(found) + 3))
            found.append(name if name not in found else next(other for other in again if other not in found))
        return cls(found)


class Values(Listed):
    """The values in masks that stand for the classes, in order: `1,2,3`."""

    each, form = int, f"two or more values of masks, 0 to {VOID - 1}, each once: 1,2,3"

    def fits(self):
        return len(self) > 1 and 0 <= min(self) and max(self) < VOID and self.differ()


class Bands(Listed):
    """Numbers of bands, from 1: one to show as gray, or three as red, green and blue: `3,2,1`."""

    each, form = int, "one or three numbers of bands, from 1, such as 3,2,1"

    def fits(self):
        return len(self) in (1, 3) and 0 < min(self) and max(self) < 10**5


class Addresses(Listed):
    """The hosts of a training, the chief first: `host1:2222,host2:2222`."""

    each, form = str, "HOST:PORT with commas between them, each once"

    def fits(self):
        found = [re.fullmatch(r"[^\s:]+:(\d{1,5})", address) for address in self]
        return all(match and 0 < int(match[1]) < 2**16 for match in found) and self.differ()


class Weights(Listed):
    """A weight for every class: `1,2,0.5`, or `balanced`, which is empty until the data is known."""

    each, form = float, "'balanced' or a number per class, such as 1,2,0.5"

    @classmethod
    def parse(cls, text):
        return cls() if text == "balanced" else super().parse(text)

    def fits(self):
        return all(w >= 0 and in_float32(w) for w in self) and sum(self) > 0

    def __str__(self):
        return super().__str__() or "balanced"


class ColorTable(str):
    """The text of a file that names the colours of masks, and where it came from. On the command line: the file's path.

    The text, and not the path, is what a run stores: the file may change.
    """

    path = "of the run"  # for messages

    @classmethod
    def parse(cls, path):
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
                raise UserError(f"{path} is no file: name one with a line `name r g b` for each class")
            table = cls(Path(path).read_text(encoding="utf-8-sig").rstrip("\n") + "\n")
        except UnicodeDecodeError:
            raise UserError(f"{path} is no text in UTF-8") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        table.path = path
        return table
