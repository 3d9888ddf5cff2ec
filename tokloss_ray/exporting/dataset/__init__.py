"""Copies of a dataset in which some tags are replaced."""
