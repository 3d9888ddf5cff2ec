"""What a run is, for the report page."""

from __future__ import annotations

import json
from typing import Any

from tokloss_ray.report.data import ReportData
from tokloss_ray.report.sentences import shorten


def subject(data: ReportData, labelled: int, unlabelled: int = 0) -> str:
    """Model, corpus and size in one line."""
    settings = data.run.settings
    given = settings.get("input") or []
    inputs = [given] if isinstance(given, str) else [*given]
    source = inputs[0].rstrip("/").rsplit("/", 1)[-1] if inputs else "the corpus"
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    model = "/".join(str(settings.get("model", "a model")).rstrip("/").split("/")[-2:])
    sequences = data.totals.scored_rows
    counted = [f"{labelled:,} labelled tokens"] if labelled or not unlabelled else []
    counted += [f"{unlabelled:,} words without a label"] if unlabelled else []
    about = " and ".join(counted) + ("" if data.where else f" in {sequences:,} rows")
    return shorten(f"{model} on {source}{more}: {about}.", 400)


def details(data: ReportData) -> list[tuple[str, str]]:
    """Run details, as names and values."""
    run, totals = data.run, data.totals
    tags = run.tags
    shown = ", ".join(tags[:50]) + (f" and {len(tags) - 50:,} more" if len(tags) > 50 else "")
    details = [
        ("Output", data.output),
        ("State", "finished" if data.finished else "not finished: figures cover only what is committed"),
        ("Rows", f"{totals.rows:,} read, {totals.scored_rows:,} scored, {totals.error_rows:,} refused"),
        ("Sequences", f"{totals.sequences:,}"),
        ("Tokens", f"{totals.tokens:,}, {totals.labels:,} of them labelled"),
        ("Dropped words", f"{totals.dropped_words:,}"),
        (f"Tags ({len(tags):,})", shown),
        ("Rank of label issues", data.rank),
    ]
    if data.scheme:
        details.append(("Tag scheme", data.scheme))
    details += [(f"--{name.replace('_', '-')}", _setting(value)) for name, value in run.settings.items()]
    identity = run.identity
    details += [
        (f"{name.replace('_', ' ').capitalize()}, as resolved", str(identity[name]))
        for name in ("dtype", "max_length", "overflow", "overlap", "shard_tokens")
        if identity.get(name) is not None
    ]
    details += [
        (f"{name.capitalize()}, SHA-256", str(identity[name])) for name in ("model", "tokenizer") if identity.get(name)
    ]
    details.append(("Fingerprint of the run", run.fingerprint))
    details.append(("Versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())))
    return [(name, shorten(value, 1000)) for name, value in details]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
