"""The scoring procedure as one sentence at a time: a batch of one, no padding, no code shared with the package.

Tests compare what the job writes with what these functions return. Everything here is meant to be read in one go and
checked by eye, so it uses the Hugging Face tokenizer and model objects directly and plain loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

IGNORE_INDEX = -100
IGN = "IGN"


def load(path: str | Path) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a folder: the model in float32 and in evaluation mode."""
    model = AutoModelForTokenClassification.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


def align_labels(
    word_ids: Sequence[int | None], tag_ids: Sequence[int | None], label_all_subtokens: bool = False
) -> list[int]:
    """Return one label id per token.

    word_ids: [tokens], the word each token came from, None for special tokens. tag_ids: [words], the model's label id
    of each word, None where the word has no tag. The first sub-token of a word carries the word's tag; its other
    sub-tokens (unless `label_all_subtokens`) and special tokens carry -100.
    """
    labels = []
    previous = None
    for word in word_ids:
        tag = None if word is None else tag_ids[word]
        if tag is None:
            labels.append(IGNORE_INDEX)
        elif word != previous or label_all_subtokens:
            labels.append(tag)
        else:
            labels.append(IGNORE_INDEX)
        previous = word
    return labels


def reference_words(
    model: Any,
    tokenizer: Any,
    words: Sequence[str],
    tag_ids: Sequence[int | None],
    *,
    label_all_subtokens: bool = False,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Score one sentence given as words [words] and the model's label ids [words] (None: no tag).

    With `max_length` the tokenizer truncates. Returns what `reference_encoded` returns, and also `input_tokens`,
    `word_ids` [tokens] and `num_dropped_words`.
    """
    limits = {} if max_length is None else {"truncation": True, "max_length": max_length}
    encoding = tokenizer(list(words), is_split_into_words=True, **limits)
    word_ids = encoding.word_ids()
    labels = align_labels(word_ids, tag_ids, label_all_subtokens)
    result = reference_encoded(model, encoding["input_ids"], labels, tokenizer=tokenizer)
    result["word_ids"] = word_ids
    result["num_dropped_words"] = len(set(range(len(words))) - set(word_ids))
    return result


def reference_encoded(
    model: Any,
    input_ids: Sequence[int],
    labels: Sequence[int],
    attention_mask: Sequence[int] | None = None,
    *,
    tokenizer: Any = None,
) -> dict[str, Any]:
    """Score one encoded sentence: input_ids, labels (-100 where ignored) and attention_mask are each [tokens].

    Returns lists of length [tokens]:
        input_ids, label_ids; input_tokens when a tokenizer is given
        labels            tag strings, `IGN` where ignored
        predicted_label   tag strings, at every position
        second_label      the runner-up
        loss              float32 values, 0.0 where ignored
        predicted_prob, second_prob
        gap               best logit minus second best; below 1e-4 the argmax may differ between two float32 runs
        second_gap        second best logit minus third best (infinite when there are two classes)
    and numbers over the labelled tokens: num_tokens, num_labels, total_loss, mean_loss, max_loss (the last two None
    where no token is labelled).
    """
    if attention_mask is None:
        attention_mask = [1] * len(input_ids)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([list(input_ids)], dtype=torch.long),
            attention_mask=torch.tensor([list(attention_mask)], dtype=torch.long),
        )
    logits = output.logits.float()  # [1, tokens, classes]
    targets = torch.tensor([list(labels)], dtype=torch.long)  # [1, tokens]
    loss = torch.nn.functional.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets.view(-1), reduction="none", ignore_index=IGNORE_INDEX
    ).view(targets.shape)
    probabilities = logits.softmax(dim=-1)

    names = model.config.id2label
    result: dict[str, Any] = {
        "input_ids": [int(i) for i in input_ids],
        "label_ids": [int(i) for i in labels],
        "labels": [IGN if i == IGNORE_INDEX else names[int(i)] for i in labels],
        "loss": loss[0].tolist(),
    }
    if tokenizer is not None:
        result["input_tokens"] = tokenizer.convert_ids_to_tokens(result["input_ids"])
    for key in ("predicted_label", "second_label", "predicted_prob", "second_prob", "gap", "second_gap"):
        result[key] = []
    for position in range(len(input_ids)):
        token_logits = logits[0, position].tolist()
        best_first = sorted(range(len(token_logits)), key=lambda k: -token_logits[k])
        best, second = best_first[0], best_first[1]
        result["predicted_label"].append(names[best])
        result["second_label"].append(names[second])
        result["predicted_prob"].append(float(probabilities[0, position, best]))
        result["second_prob"].append(float(probabilities[0, position, second]))
        result["gap"].append(token_logits[best] - token_logits[second])
        third = token_logits[best_first[2]] if len(best_first) > 2 else -math.inf
        result["second_gap"].append(token_logits[second] - third)

    labelled = [value for value, label in zip(result["loss"], labels, strict=True) if label != IGNORE_INDEX]
    result["num_tokens"] = len(input_ids)
    result["num_labels"] = len(labelled)
    result["total_loss"] = sum(labelled)
    result["mean_loss"] = sum(labelled) / len(labelled) if labelled else None
    result["max_loss"] = max(labelled) if labelled else None
    return result
