"""What a training is besides its API: the run and its folder, folds, the schedule, what is reported."""
