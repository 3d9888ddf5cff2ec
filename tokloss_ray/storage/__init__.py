"""Files by URI or local path, what storage raises, and files that notice damage."""
