"""Tag schemes: entity spans from tags, and tags from spans."""
