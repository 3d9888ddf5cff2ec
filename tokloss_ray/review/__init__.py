"""Going through label issues in a browser: what is shown, what is decided, and the server for one person."""
