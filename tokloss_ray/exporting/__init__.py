"""Sentences out to annotators' tools, and corrected labels back into the dataset."""
