"""The labelled words of some sequences, flat: what every mining table is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Words:
    """N labelled words of S sequences, in the order of sequence and word.

    A word is what carries a label: the token that has it (the first of its sub-tokens), joined with the word as given.
    With `--label-all-subtokens` the first labelled token speaks for its word. A row that was scored in several windows
    is one sequence again here, so that an entity is never cut by a window.

    Attributes:
        tags: the model's tags by code, C of them.
        offsets: [S + 1] int64, where the words of each sequence begin.
        example_id, source: [S] strings; source_row: [S] int64.
        by: columns that tables are sliced by, each [S] strings, null where the value is null.
        token_index: [N] int32, position of the token in its window; window: [N] int32, 0 for short sequences.
        word_index: [N] int32, index of the word in its row; for pre-encoded input, the token's.
        token: [N] strings, dictionary-encoded, as the tokenizer spells it; word: [N] strings, the token's where the
            input was pre-encoded.
        num_subtokens: [N] int32, tokens of the word that the window shows.
        label, predicted, second: [N] int32 codes; second is -1 where there is none.
        loss, predicted_prob, second_prob: [N] float32.
        probs: [N, C] float32, or None without `--keep-probs`.
    """

    tags: tuple[str, ...]
    offsets: np.ndarray
    example_id: pa.Array
    source: pa.Array
    source_row: np.ndarray
    token_index: np.ndarray
    window: np.ndarray
    word_index: np.ndarray
    token: pa.DictionaryArray
    word: pa.DictionaryArray
    num_subtokens: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    second: np.ndarray
    loss: np.ndarray
    predicted_prob: np.ndarray
    second_prob: np.ndarray
    probs: np.ndarray | None = None
    by: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def sequence(self) -> np.ndarray:
        """[N] int64: the sequence of each word."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
