"""Is it the same network three times, and what does each cost? What compare.py calls."""

from common.config import IMPLEMENTATIONS  # noqa: F401
from comparison.columns import ROOT, load  # noqa: F401
