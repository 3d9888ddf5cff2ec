"""The export formats. To add one, write a module with an `ExportFormat` in it and name that here."""

from __future__ import annotations

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.cleanlab_table import CLEANLAB
from tokloss_ray.exporting.conll_sheet import CONLL
from tokloss_ray.exporting.csv_sheet import CSV
from tokloss_ray.exporting.doccano import DOCCANO
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.label_studio import LABEL_STUDIO
from tokloss_ray.exporting.prodigy import PRODIGY
from tokloss_ray.exporting.spacy_docs import SPACY

FORMATS: tuple[ExportFormat, ...] = (LABEL_STUDIO, DOCCANO, PRODIGY, SPACY, CLEANLAB, CONLL, CSV)


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
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = next((format_ for format_ in FORMATS if format_.recognises is not None and format_.recognises(start)), None)
    return known or next(format_ for format_ in FORMATS if format_.recognises is None)
