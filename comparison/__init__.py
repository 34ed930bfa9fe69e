"""Is it the same network three times, and what does each cost? What compare.py calls."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
