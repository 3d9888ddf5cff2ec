"""What an export format is: how sentences are written for annotators, and how their corrections are read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format for annotators. It is written and read back as soon as `formats.FORMATS` has it.

    Attributes:
        name: of `--format`.
        write: sentences, how their tags are written, and whether to add a column with the loss -> the file, piece by
            piece.
        read: the bytes of a corrected file -> one correction a sentence. May raise `Refused`, without the file's name.
        recognises: whether a corrected file is of this format; it gets the bytes from the first visible character on.
            None: it may begin with anything, and is what no other format recognises.
        distributions: whether sentences have to come with the probabilities of all tags.
        beside: how tags are written -> a file that goes next to it, as FILE.xml; None if there is none.
        next_step: what to do with the file, for a person; `{file}` is its name.
    """

    name: str
    write: Callable[[Iterable[Sentence], TagSet, bool], Iterator[bytes]]
    read: Callable[[bytes], Iterator[Correction]]
    recognises: Callable[[bytes], bool] | None = None
    distributions: bool = False
    beside: Callable[[TagSet], str] | None = None
    next_step: str
