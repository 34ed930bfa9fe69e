"""Text from outside, such as the names of files and classes, on its way to a terminal, a table or a JSON file.

A file may be named `\\x1b[2J`, which clears the screen, or `=HYPERLINK(...)`, which a spreadsheet computes, or in bytes that
are no UTF-8. What is printed or written of it goes through here.
"""

import sys


def printable(text):
    """`text` in one line: what is no visible character, and bytes that were no UTF-8, stand in it as `\\x1b` or `\\udcff`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(line, file=None):
    """Prints one line, whatever is in it, to `file` (default: the standard output), which may know ASCII alone."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def cell(text):
    """`text` for a cell of a CSV file. Behind an apostrophe a spreadsheet computes nothing (OWASP, "CSV injection")."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def listed(texts, limit=10):
    """The first of `texts` with commas between them, and how many more there are."""
    return ", ".join(texts[:limit]) + (f", and {len(texts) - limit} more" if len(texts) > limit else "")
