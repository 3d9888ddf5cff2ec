"""The model as files and as layers: where it is, what it says of itself, how its products run fast on CPUs."""
