"""Views of runs and results for a person."""
