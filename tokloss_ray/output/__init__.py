"""What a run has written: names, commit records, totals; how to read, check and sum it."""
