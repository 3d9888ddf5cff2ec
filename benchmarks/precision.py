"""What bfloat16 costs: losses and predictions of the demo's model against float32, over the bundled corpus.

python benchmarks/precision.py --json precision.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
from common import save, say, show
from corpora import DEMO_DATA, DEMO_MODEL

from tokloss_ray.config import ScoreConfig
from tokloss_ray.schema import IGN
from tokloss_ray.scoring.driver import score


def scores(folder: Path, model: str, data: str, dtype: str) -> dict[str, np.ndarray]:
    """Labels, predictions and losses of all labelled tokens, in the order of the rows."""
    output = str(folder / dtype)
    score(ScoreConfig(model=model, input=(data,), output=output, dtype=dtype))  # type: ignore[arg-type]
    table = pads.dataset(f"{output}/scores").to_table(columns=["source_row", "labels", "predicted_label", "loss"])
    table = table.sort_by("source_row")
    flat = {name: table.column(name).combine_chunks().flatten() for name in ("labels", "predicted_label", "loss")}
    arrays = {name: values.to_numpy(zero_copy_only=False) for name, values in flat.items()}
    labelled = arrays["labels"] != IGN
    return {name: values[labelled] for name, values in arrays.items()}


def compare(one: dict[str, np.ndarray], other: dict[str, np.ndarray], dtype: str = "bfloat16") -> dict[str, float]:
    """Differences of the second to the first, over labelled tokens."""
    assert np.array_equal(one["labels"], other["labels"])
    difference = np.abs(one["loss"].astype(np.float64) - other["loss"])
    changed = one["predicted_label"] != other["predicted_label"]
    return {
        "labelled tokens": len(difference),
        "mean loss, float32": round(float(one["loss"].mean()), 5),
        f"mean loss, {dtype}": round(float(other["loss"].mean()), 5),
        "mean absolute difference": round(float(difference.mean()), 5),
        "99th percentile of it": round(float(np.quantile(difference, 0.99)), 4),
        "maximum of it": round(float(difference.max()), 3),
        "changed predictions": int(changed.sum()),
        "share of them": round(float(changed.mean()), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--data", default=str(DEMO_DATA))
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(*(scores(Path(folder), args.model, args.data, dtype) for dtype in ("float32", "bfloat16")))
    show("bfloat16 against float32", ["", "value"], [[name, value] for name, value in figures.items()])
    say("To rank errors either will do; to compare two runs, keep one dtype.")
    save(args.json, "precision", {"figures": figures})


if __name__ == "__main__":
    main()
