"""The input formats. To add one, write a module with a `Format` in it and name that here."""

from __future__ import annotations

from tokloss_ray.inputs.arrow import ARROW
from tokloss_ray.inputs.conll import CONLL
from tokloss_ray.inputs.csv_table import CSV
from tokloss_ray.inputs.format import PACKED, Format
from tokloss_ray.inputs.jsonl import JSONL
from tokloss_ray.inputs.parquet import PARQUET

FORMATS: tuple[Format, ...] = (PARQUET, JSONL, CONLL, ARROW, CSV)


def format_named(name: str) -> Format:
    """The format with this name."""
    return next(format_ for format_ in FORMATS if format_.name == name)


def format_of(path: str, in_folder: bool) -> Format | None:
    """The format that a file is read in, judging by its name; None if it is none, or is left alone in a folder."""
    name = path.lower()
    unpacked = name
    for packed in PACKED:
        unpacked = unpacked.removesuffix(packed)
    for format_ in FORMATS:
        suffixes = format_.suffixes if in_folder else (*format_.suffixes, *format_.named_suffixes)
        if (unpacked if format_.packed else name).endswith(suffixes):
            return format_
    return None


def known_formats(named: bool) -> list[str]:
    """Each format that files can be called by, with its endings. named: those that --input must name, too."""
    shown = ((f.title, f.suffixes + (f.named_suffixes if named else ())) for f in FORMATS)
    return [f"{title} ({', '.join(suffixes)})" for title, suffixes in shown if suffixes]
