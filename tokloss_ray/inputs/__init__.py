"""What is scored: files, columns, read units, and a reader for each format."""
