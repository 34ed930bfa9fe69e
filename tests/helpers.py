"""What tests of several files use: a refusal that is expected, and Python in a process of its own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from common.config import UserError

import pytest

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def refused(*texts):
    """A `UserError` of one line is raised, which holds all `texts` and no noise of Python or Pillow."""
    try:
        yield
    except UserError as error:
        message = str(error)  # and not its traceback, which would keep files open
    else:
        pytest.fail(f"not refused, for {texts}")
    assert not [text for text in texts if str(text) not in message], f"{texts} in {message!r}"
    assert not [noise for noise in ("\n", "<_io", "BytesIO", " object at 0x") if noise in message], message


def python(*arguments, **environment):
    """Runs `python arguments` in the folder of the project. Returns: the finished process, its output as text."""
    options = dict(cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    return subprocess.run([sys.executable, *map(str, arguments)], **options)
