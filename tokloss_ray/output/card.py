"""The README.md of a finished output: what the folder is, and what `datasets` and a hub have to know of it."""

from __future__ import annotations

from collections.abc import Mapping

from tokloss_ray.output.totals import Totals

_CARD = """\
---
configs:
{configs}
---

# Losses per token

Written by `tokloss score`: {rows:,} rows, {tokens:,} tokens, of them {labels:,} with a label{mean}.
Each row of `scores/` is a sentence, or a window of a long one, with lists as long as its tokens: `input_tokens`,
`labels` (`IGN` where a token has none), `predicted_label`, `loss` (cross-entropy in nats), `predicted_prob` and more.

| tag | labelled tokens | mean loss |
| --- | ---: | ---: |
{tags}

```python
from datasets import load_dataset

scores = load_dataset("FOLDER", "scores", split="scored")  # FOLDER: this one, or its name on a hub
```

```sql
-- DuckDB: the tokens with the highest loss
select unnest(input_tokens) as token, unnest(labels) as label, unnest(predicted_label) as tag, unnest(loss) as loss
from read_parquet('FOLDER/scores/**/*.parquet') order by loss desc limit 20;
```
"""

_CONFIG = """\
- config_name: {name}
  data_files:
  - split: {split}
    path: {name}/**/*.parquet"""


def card(totals: Totals) -> str:
    """A dataset card with the configurations that exist (https://huggingface.co/docs/hub/datasets-cards).

    It has neither paths nor times, so that the same run has the same card.
    """
    parts = (("scores", "scored", totals.scored_rows), ("errors", "refused", totals.error_rows))
    configs = [_CONFIG.format(name=name, split=split) for name, split, rows in parts if rows]
    mean = "" if totals.mean_loss is None else f", mean loss {totals.mean_loss:.4f}"
    return _CARD.format(
        configs="\n".join(configs),
        rows=totals.rows,
        tokens=totals.tokens,
        labels=totals.labels,
        mean=mean,
        tags=_tag_rows(totals.loss_by_tag),
    )


def _tag_rows(loss_by_tag: Mapping[str, tuple[int, float]]) -> str:
    """Lines of a table, the most frequent tag first."""
    ordered = sorted(loss_by_tag.items(), key=lambda item: (-item[1][0], item[0]))
    rows = ((tag.replace("|", r"\|"), n, loss) for tag, (n, loss) in ordered if n)
    return "\n".join(f"| {tag} | {n:,} | {loss / n:.4f} |" for tag, n, loss in rows)
