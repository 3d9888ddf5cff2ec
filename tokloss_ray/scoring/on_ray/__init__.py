"""Where the stages meet Ray: what workers run, which hardware there is, whether nodes are alive."""
