"""(g) The job as a user of Ray Data would write it without this package: a model in an actor, batches of 256 rows."""

from __future__ import annotations

import argparse
import os

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy
from transformers import AutoModelForTokenClassification, AutoTokenizer


class Predict:
    def __init__(self, model: str, dtype: str) -> None:
        torch.set_num_threads(os.cpu_count() or 1)  # Ray gives an actor of one CPU one thread
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForTokenClassification.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        words = [list(row) for row in batch["tokens"]]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt")
        labels = torch.full(encoded["input_ids"].shape, -100)
        for i, tags in enumerate(batch["ner_tags"]):
            before = None
            for at, word in enumerate(encoded.word_ids(i)):
                if word is not None and word != before:
                    labels[i, at] = int(tags[word])
                before = word
        with torch.no_grad():
            logits = self.model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        predicted = logits.argmax(-1)
        names = self.model.config.id2label
        out: dict[str, list] = {"id": list(batch["id"]), "input_tokens": [], "labels": [], "predicted": [], "loss": []}
        for i, length in enumerate(encoded["attention_mask"].sum(1).tolist()):
            out["input_tokens"].append(self.tokenizer.convert_ids_to_tokens(encoded["input_ids"][i, :length]))
            out["labels"].append([names.get(label, "IGN") for label in labels[i, :length].tolist()])
            out["predicted"].append([names[label] for label in predicted[i, :length].tolist()])
            out["loss"].append(loss[i, :length].numpy())
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--input", "--output", "--dtype"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    ray.data.read_parquet(args.input).map_batches(
        Predict,
        fn_constructor_args=(args.model, args.dtype),
        batch_size=256,
        num_cpus=1,
        compute=ActorPoolStrategy(size=1),
    ).write_parquet(args.output)


if __name__ == "__main__":
    main()
