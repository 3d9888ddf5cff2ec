"""The export formats. To add one, write a module with an `ExportFormat` in it and name that here."""

from __future__ import annotations

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.conll_sheet import CONLL
from tokloss_ray.exporting.csv_sheet import CSV
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.label_studio import LABEL_STUDIO

FORMATS: tuple[ExportFormat, ...] = (LABEL_STUDIO, CONLL, CSV)


def format_named(name: str) -> ExportFormat:
    """The format with this name.

    Raises:
        Refused: there is none, with the names there are.
    """
    for format_ in FORMATS:
        if format_.name == name:
            return format_
    raise Refused(f"--format {name}: no such format; choose one of {', '.join(f.name for f in FORMATS)}")


def format_of(data: bytes) -> ExportFormat:
    """The format of a corrected file, going by how it begins."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    anything = next(format_ for format_ in FORMATS if not format_.begins)
    return next((format_ for format_ in FORMATS if start in format_.begins), anything)
