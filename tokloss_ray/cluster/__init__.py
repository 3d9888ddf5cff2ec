"""Ray for the time of a job: joined or started, streamed from, and ended in order."""
