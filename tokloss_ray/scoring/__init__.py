"""The main job: plan, read, encode, score, decode, commit."""
