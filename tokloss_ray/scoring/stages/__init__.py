"""One shard through the stages, without Ray: encode, cut, score, decode, commit."""
