"""The study page: the three columns row by row, and what each row becomes."""

import common.device  # noqa: F401  starts TensorFlow, before any other import of it
