"""The study page, docs/study.html: the three columns row by row, and what each row becomes."""

import common  # noqa: F401  settles the environment, before TensorFlow is imported
