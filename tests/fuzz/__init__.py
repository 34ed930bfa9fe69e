"""Damaged files and absurd values for every reader, and files of others beside what is written: nothing is lost."""
