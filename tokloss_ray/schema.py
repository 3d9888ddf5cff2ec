"""Column names, Arrow schemas and the few words with a fixed meaning, all in one place."""

from __future__ import annotations

import pyarrow as pa

IGN = "IGN"
"""The tag shown where a position carries no label."""

IGNORE_INDEX = -100
"""The label id of a position without a label: what `torch.nn.functional.cross_entropy` ignores by default."""

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

PADDED, EQUAL_LENGTH, PACKED = "padded", "equal-length", "packed"
"""How micro-batches are formed: padded to the longest sequence, of sequences of one length where padding would change
what the model answers, or of sequences end to end, without padding."""

# Columns of scores/, in the order they are written.
EXAMPLE_ID = "example_id"
SOURCE = "source"
SOURCE_ROW = "source_row"
WINDOW = "window"
WORDS = "words"
INPUT_IDS = "input_ids"
INPUT_TOKENS = "input_tokens"
WORD_IDS = "word_ids"
LABELS = "labels"
PREDICTED_LABEL = "predicted_label"
LOSS = "loss"
PREDICTED_PROB = "predicted_prob"
SECOND_LABEL = "second_label"
SECOND_PROB = "second_prob"
ENTROPY = "entropy"
PROBS = "probs"
WORD_STARTS = "word_starts"
WORD_ENDS = "word_ends"
WORD_OFFSETS = (WORD_STARTS, WORD_ENDS)
WORD_INDEX, WORD_LABEL, WORD_PREDICTED = "word_index", "word_label", "word_predicted"
WORD_PROB, WORD_LOSS = "word_prob", "word_loss"
"""Where each word begins and ends in the text, in code points; only where the input is text with spans."""
NUM_TOKENS = "num_tokens"
NUM_LABELS = "num_labels"
NUM_DROPPED_WORDS = "num_dropped_words"
TOTAL_LOSS = "total_loss"
MEAN_LOSS = "mean_loss"
MAX_LOSS = "max_loss"

ATTENTION_MASK = "attention_mask"
"""An input column only: the model does not attend to positions with 0."""

# Columns that a shard carries between stages and that are not written.
FILE_PART = "file_part"
"""Which part of its read unit, later of its shard, a row is of: an index into a list of files."""
LABEL_IDS = "label_ids"
PREDICTED_IDS = "predicted_ids"
SECOND_IDS = "second_ids"
PROBLEM = "problem"
BEGINS_DOCUMENT = "_begins_document"
DOCUMENT = "_document"
"""Which document a row is of, as text."""
OWN = "_own"
"""Of each token whether it is of the row itself, and not of its context."""
OF_TOKENS = frozenset(
    {INPUT_IDS, WORD_IDS, LABEL_IDS, PREDICTED_IDS, SECOND_IDS, LOSS, PREDICTED_PROB, SECOND_PROB, ENTROPY, PROBS}
)
"""Columns of a scored shard with an entry for each token."""

SCORES_FIELDS = (
    pa.field(EXAMPLE_ID, pa.string()),
    pa.field(SOURCE, pa.string()),
    pa.field(SOURCE_ROW, pa.int64()),
    pa.field(WINDOW, pa.int32()),
    pa.field(WORDS, pa.list_(pa.string())),
    pa.field(INPUT_IDS, pa.list_(pa.int32())),
    pa.field(INPUT_TOKENS, pa.list_(pa.string())),
    pa.field(WORD_IDS, pa.list_(pa.int32())),
    pa.field(LABELS, pa.list_(pa.string())),
    pa.field(PREDICTED_LABEL, pa.list_(pa.string())),
    pa.field(LOSS, pa.list_(pa.float32())),
    pa.field(PREDICTED_PROB, pa.list_(pa.float32())),
    pa.field(SECOND_LABEL, pa.list_(pa.string())),
    pa.field(SECOND_PROB, pa.list_(pa.float32())),
    pa.field(NUM_TOKENS, pa.int32()),
    pa.field(NUM_LABELS, pa.int32()),
    pa.field(NUM_DROPPED_WORDS, pa.int32()),
    pa.field(TOTAL_LOSS, pa.float32()),
    pa.field(MEAN_LOSS, pa.float32()),
    pa.field(MAX_LOSS, pa.float32()),
)
WORD_FIELDS = (
    pa.field(WORD_INDEX, pa.list_(pa.int32())),
    pa.field(WORD_LABEL, pa.list_(pa.string())),
    pa.field(WORD_PREDICTED, pa.list_(pa.string())),
    pa.field(WORD_PROB, pa.list_(pa.float32())),
    pa.field(WORD_LOSS, pa.list_(pa.float32())),
)
"""What `--level word` adds: one entry for each word."""
ENTROPY_FIELD = pa.field(ENTROPY, pa.list_(pa.float32()))
PROBS_FIELD = pa.field(PROBS, pa.list_(pa.list_(pa.float32())))
RESERVED = frozenset(f.name for f in SCORES_FIELDS) | {
    ENTROPY,
    PROBS,
    *WORD_OFFSETS,
    *(field.name for field in WORD_FIELDS),
    FILE_PART,
    LABEL_IDS,
    PREDICTED_IDS,
    SECOND_IDS,
    PROBLEM,
    ATTENTION_MASK,
}

ERRORS_SCHEMA = pa.schema(
    [
        (EXAMPLE_ID, pa.string()),
        (SOURCE, pa.string()),
        (SOURCE_ROW, pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("payload", pa.string()),
    ]
)

REASONS = (
    "empty",
    "null_field",
    "length_mismatch",
    "unknown_tag",
    "label_out_of_range",
    "token_out_of_range",
    "not_a_string",
    "malformed",
    "wrong_span",
    "span_cuts_word",
    "overlapping_spans",
    "too_long",
    "too_short",
    "out_of_memory",
    "non_finite",
)
"""Every reason a row can be in errors/ for."""
