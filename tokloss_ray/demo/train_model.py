"""Train the demo model from scratch and write it to a folder.

Run from the repository root, with WikiANN (PAN-X) as Parquet files that have `tokens` and `ner_tags`:

    python -m tokloss_ray.demo.train_model --train de-train.parquet en-train.parquet es-train.parquet \
        nl-train.parquet --validation de-val.parquet --out tokloss_ray/demo/model

The tokenizer is a unigram model (Kudo 2018) learnt from the training words. Word dropout hides whole words, which
makes a model this small lean on context for names it has never seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
IGNORE_INDEX = -100


def train_tokenizer(sentences: list[list[str]], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a unigram vocabulary from pre-split words; words start with the visible space, as in SentencePiece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        unk_token=SPECIAL["unk_token"],
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words) for words in sentences), trainer)
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL)


def encode(tokenizer: PreTrainedTokenizerFast, sentences: list[list[str]], tags: list[list[int]]) -> list[dict]:
    """Token ids, word ids and labels of each sentence; only the first token of a word carries its tag."""
    encodings = tokenizer(sentences, is_split_into_words=True, truncation=True)
    rows = []
    for i, sentence_tags in enumerate(tags):
        word_ids = np.array([-1 if w is None else w for w in encodings.word_ids(i)])
        first = np.append(True, word_ids[1:] != word_ids[:-1]) & (word_ids >= 0)
        labels = np.where(first, np.array(sentence_tags)[word_ids], IGNORE_INDEX)
        rows.append({"ids": np.array(encodings["input_ids"][i]), "words": word_ids, "labels": labels})
    return rows


def batches(rows: list[dict], budget: int, rng: np.random.Generator) -> Iterator[list[dict]]:
    """Batches of similar length holding about `budget` padded tokens, in random order."""
    noise = rng.uniform(0, 3, len(rows))
    order = np.argsort([len(r["ids"]) + n for r, n in zip(rows, noise, strict=True)], kind="stable")
    cut: list[list[dict]] = []
    batch: list[dict] = []
    longest = 0
    for i in order:
        longest = max(longest, len(rows[i]["ids"]))
        if batch and longest * (len(batch) + 1) > budget:
            cut.append(batch)
            batch, longest = [], len(rows[i]["ids"])
        batch.append(rows[i])
    cut.append(batch)
    for i in rng.permutation(len(cut)):
        yield cut[i]


def collate(
    batch: list[dict], tokenizer: PreTrainedTokenizerFast, dropout: float, rng: np.random.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded ids, mask and labels as tensors [batch, sequence]; each word is hidden with probability `dropout`."""
    shape = (len(batch), max(len(r["ids"]) for r in batch))
    ids, mask = np.full(shape, tokenizer.pad_token_id), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX)
    for i, row in enumerate(batch):
        n = len(row["ids"])
        ids[i, :n], mask[i, :n], labels[i, :n] = row["ids"], 1, row["labels"]
        if rng is not None and row["words"].max() >= 0:
            hidden = rng.random(row["words"].max() + 1) < dropout
            ids[i, :n][(row["words"] >= 0) & hidden[row["words"]]] = tokenizer.mask_token_id
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels)


@torch.inference_mode()
def span_f1(model: BertForTokenClassification, tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> float:
    """Entity F1 (seqeval, default mode) of the float32 model."""
    model.eval()
    true, predicted = [], []
    for batch in batches(rows, 4096, np.random.default_rng(0)):
        ids, mask, labels = collate(batch, tokenizer, 0.0, None)
        best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        for label_row, best_row in zip(labels.numpy(), best.numpy(), strict=True):
            keep = label_row != IGNORE_INDEX
            true.append([TAGS[t] for t in label_row[keep]])
            predicted.append([TAGS[t] for t in best_row[keep]])
    return f1_score(true, predicted)


def train(args: argparse.Namespace) -> tuple[BertForTokenClassification, PreTrainedTokenizerFast, float]:
    """Train and return model, tokenizer and the span F1 on the validation file."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tables = [pq.read_table(path, columns=["tokens", "ner_tags"]) for path in args.train]
    sentences = [words for t in tables for words in t["tokens"].to_pylist()]
    tags = [sentence_tags for t in tables for sentence_tags in t["ner_tags"].to_pylist()]
    held_out = pq.read_table(args.validation, columns=["tokens", "ner_tags"])

    tokenizer = train_tokenizer(sentences, args.vocab_size, args.max_length)
    rows = encode(tokenizer, sentences, tags)
    held_out_rows = encode(tokenizer, held_out["tokens"].to_pylist(), held_out["ner_tags"].to_pylist())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        intermediate_size=4 * args.width,
        max_position_embeddings=args.max_length,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=args.dropout,
        classifier_dropout=0.2,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: i for i, tag in enumerate(TAGS)},
    )
    model = BertForTokenClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    steps = args.epochs * sum(1 for _ in batches(rows, args.batch_tokens, rng)) + args.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    f1, start = 0.0, time.monotonic()
    for epoch in range(args.epochs):
        model.train()
        losses = []
        for batch in batches(rows, args.batch_tokens, rng):
            ids, mask, labels = collate(batch, tokenizer, args.word_dropout, rng)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits_BLC = model(input_ids=ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(
                logits_BLC.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        f1 = span_f1(model, tokenizer, held_out_rows)
        print(
            f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, span F1 {f1:.4f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    model.half().float()  # score what is stored, not what was trained
    f1 = span_f1(model, tokenizer, held_out_rows)
    return model, tokenizer, f1


def main() -> None:
    """Train with the arguments of the command line and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--word-dropout", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer, f1 = train(args)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"span F1 as stored: {f1:.4f}")


if __name__ == "__main__":
    main()
