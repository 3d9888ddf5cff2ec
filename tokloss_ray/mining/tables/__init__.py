"""The mining tables, one module each (or one for a few that share their partial)."""
