"""What a training is besides its API: the run and its folder, folds, the schedule, what is reported."""

import common  # noqa: F401  settles the environment before any TensorFlow is imported
