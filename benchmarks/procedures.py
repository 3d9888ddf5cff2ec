"""The same rows through the same model in different ways: each returns tokens per second, padding not counted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from tokloss_ray.model.packed_linear import pack
from tokloss_ray.scoring.stages.batching import pad, plan_batches

BUDGET = 1024
"""Padded tokens a micro-batch of the loops, as in the job on CPUs: the best for the plain loop."""


def load(model: Path, dtype: torch.dtype) -> torch.nn.Module:
    return AutoModelForTokenClassification.from_pretrained(model, dtype=dtype).eval()


def encode(model: Path, table: pa.Table) -> Dataset:
    """As in NER fine-tuning: the first token of a word has its label, every other position -100."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def align(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True)
        labels = []
        for i, tags in enumerate(batch["ner_tags"]):
            words = encoded.word_ids(i)
            labels.append(
                [
                    -100 if word is None or (at and words[at - 1] == word) else tags[word]
                    for at, word in enumerate(words)
                ]
            )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}

    columns = Dataset(table.select(["tokens", "ner_tags"]))
    return columns.map(align, batched=True, remove_columns=columns.column_names, load_from_cache_file=False)


def tokens_of(encoded: Dataset) -> int:
    return sum(map(len, encoded["input_ids"]))


def reference(model: torch.nn.Module, folder: Path, encoded: Dataset) -> float:
    """(a) The notebook's procedure: `datasets.map` over batches of 32, in the order of the rows."""
    collator = DataCollatorForTokenClassification(AutoTokenizer.from_pretrained(folder))

    def forward(batch: dict[str, list]) -> dict[str, np.ndarray]:
        features = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        padded = collator(features, return_tensors="pt").to(model.device)
        with torch.no_grad():
            logits = model(padded["input_ids"], padded["attention_mask"]).logits.float()
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), padded["labels"].view(-1), reduction="none")
        return {
            "loss": loss.view(len(features), -1).cpu().numpy(),
            "predicted_label": logits.argmax(-1).cpu().numpy(),
        }

    start = time.perf_counter()
    encoded.map(forward, batched=True, batch_size=32, load_from_cache_file=False)
    return tokens_of(encoded) / (time.perf_counter() - start)


def hf_pipeline(model: torch.nn.Module, folder: Path, table: pa.Table, tokens: int, device: str = "cpu") -> float:
    """(b) `transformers.pipeline`, batches of 32. It gets running text, and makes no losses."""
    texts = Dataset.from_dict({"text": [" ".join(words) for words in table.column("tokens").to_pylist()]})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tagger = pipeline("token-classification", model=model, tokenizer=tokenizer, device=device)
    start = time.perf_counter()
    for _ in tagger(KeyDataset(texts, "text"), batch_size=32):
        pass
    return tokens / (time.perf_counter() - start)


def trainer_predict(model: torch.nn.Module, folder: Path, encoded: Dataset) -> float:
    """(c) `Trainer.predict`, batches of 32; it sums losses up."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model,
            TrainingArguments(scratch, per_device_eval_batch_size=32, use_cpu=True, report_to=[], disable_tqdm=True),
            data_collator=DataCollatorForTokenClassification(AutoTokenizer.from_pretrained(folder)),
        )
        start = time.perf_counter()
        trainer.predict(encoded)
        return tokens_of(encoded) / (time.perf_counter() - start)


class Ragged:
    """Encoded rows as flat arrays, for the loops."""

    def __init__(self, encoded: Dataset) -> None:
        ids = encoded.data.column("input_ids").combine_chunks()
        self.ids = ids.flatten().to_numpy().astype(np.int64)
        self.labels = encoded.data.column("labels").combine_chunks().flatten().to_numpy().astype(np.int64)
        self.lengths = np.diff(ids.offsets.to_numpy())
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def loop(self, forward: Callable[[np.ndarray, np.ndarray], torch.Tensor], pad_id: int, budget: int) -> float:
        """Length-sorted, token-budgeted micro-batches: pad, run, loss and prediction; nothing is kept."""
        start = time.perf_counter()
        with torch.inference_mode():
            for rows in plan_batches(self.lengths, budget):
                batch = pad(self.ids, None, self.starts, self.lengths, rows, pad_id)
                labels = np.full(batch.input_ids.shape, -100)
                labels.reshape(-1)[batch.where] = self.labels[batch.at]
                logits = forward(batch.input_ids, batch.attention).float()
                targets = torch.from_numpy(labels).flatten().to(logits.device)
                F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
                logits.argmax(-1)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        return len(self.ids) / (time.perf_counter() - start)


def torch_forward(model: torch.nn.Module) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
    """(d) PyTorch, as it is or packed, wherever the model is."""
    device = next(model.parameters()).device

    def forward(ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        input_ids, attention_mask = (torch.from_numpy(array).to(device) for array in (ids, mask))
        return model(input_ids=input_ids, attention_mask=attention_mask).logits

    return forward


def packed(model: torch.nn.Module) -> torch.nn.Module:
    """The model with the linear layers that the job uses on CPUs (`model/packed_linear.py`)."""
    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        assert pack(model, lambda m: m(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    return model


def onnx_forward(model: torch.nn.Module, folder: Path) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
    """(e) ONNX Runtime with as many threads as PyTorch."""
    import onnxruntime

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    path = folder / "model.onnx"
    if not path.exists():
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        ids = torch.ones((3, 17), dtype=torch.int64)
        torch.onnx.export(
            Logits().eval(), (ids, ids), path, dynamo=True, verbose=False,
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        )  # fmt: skip
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between calls would slow down what is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda ids, mask: torch.from_numpy(session.run(None, dict(zip(names, (ids, mask), strict=True)))[0])


def product_rate(dtype: torch.dtype, engine: str) -> float:
    """GFLOP/s of a matrix product of the shape of a feed-forward layer (1,024 x 768 x 3,072), best of twenty."""
    x = torch.randn(1024, 768, dtype=dtype)
    layer = torch.nn.Linear(768, 3072, dtype=dtype)
    if engine == "packed":
        holder = torch.nn.Sequential(layer)
        with torch.inference_mode():
            assert pack(holder, lambda m: m(x))
        layer = holder[0]
    best = 0.0
    with torch.inference_mode():
        for _ in range(20):
            start = time.perf_counter()
            layer(x)
            best = max(best, 2 * 1024 * 768 * 3072 / (time.perf_counter() - start) / 1e9)
    return best
