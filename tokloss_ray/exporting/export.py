"""`tokloss export`: chosen sentences of an output as a file for annotators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.decided import LEAVE, corrections, read_decided
from tokloss_ray.exporting.formats import format_named
from tokloss_ray.exporting.sentences import Sentence, keys_of_id, mined_keys, read_sentences, worst_keys
from tokloss_ray.output.decisions import read_decisions
from tokloss_ray.output.opened import open_outputs
from tokloss_ray.storage.files import exists, open_location, write_whole
from tokloss_ray.storage.writing import writing_whole
from tokloss_ray.tags.sentence_spans import tag_set_of


def export(
    output: str,
    file: str,
    format: str,
    *,
    worst: int | None = None,
    issues: int | None = None,
    uncertain: int | None = None,
    ids: Sequence[str] = (),
    where: Sequence[str] = (),
    loss: bool = False,
    scheme: str | None = None,
    overwrite: bool = False,
    reviewed: bool | None = None,
) -> int:
    """Write sentences of a finished output to a file, for relabelling. By default, all of them.

    Args:
        output: output folder or address.
        file: file to write. For Label Studio, its labelling interface is written next to it, as FILE.xml.
        format: "label-studio", "doccano", "prodigy", "spacy", "cleanlab", "conll" or "csv".
        worst: only the N sentences with the highest total loss, worst first.
        issues: only the sentences of the top N label issues found by `tokloss mine`, worst first.
        uncertain: only the first N sentences of the table `uncertain_sequences` that `tokloss mine` made: those whose
            words without a label are expected to hold most errors.
        ids: only the sentences with these example_ids.
        where: only rows with `COLUMN=VALUE` or `COLUMN!=VALUE`.
        loss: add a column with the loss (CoNLL).
        scheme: tag scheme such as "IOB1", if the tag names do not tell.
        overwrite: replace an existing file.
        reviewed: of these sentences, only those that somebody has decided on in `tokloss review`, with the decided tags
            as what annotators start from; or, False, only the others.

    Returns:
        The number of sentences written.

    Raises:
        Refused: no such format, two selections at once, no matching sentences, or the file exists.
        JobFailed: a file of the output is missing or damaged.

    Example:
        >>> import tokloss_ray
        >>> tokloss_ray.export("tokloss-demo", "worst.csv", "csv", worst=100)
        100
    """
    written = format_named(format)
    chosen = [name for name, given in _selections(worst, issues, uncertain, ids) if given]
    if len(chosen) > 1:
        raise Refused(f"{' and '.join(chosen)} select sentences in different ways: use only one of them")
    fs, path = open_location(file)
    if not overwrite and exists(fs, path):
        raise Refused(f"{file} already exists and may contain corrections: choose another, or add --overwrite")
    tags = open_outputs(output).tags
    keys = None
    if worst:
        keys = worst_keys(output, worst, where)
    elif issues:
        keys = mined_keys(output, "label_issues", issues, "--issues")
    elif uncertain:
        keys = mined_keys(output, "uncertain_sequences", uncertain, "--uncertain")
    elif ids:
        keys = keys_of_id(output, ids)
    sentences = read_sentences(output, keys, where, written.distributions)
    counter = _Counted(sentences if reviewed is None else _by_review(output, sentences, reviewed))
    tag_set = tag_set_of(tags, scheme)
    with writing_whole(fs, path) as write:
        for piece in written.write(counter, tag_set, loss):
            write(piece)
        if not counter.count:
            raise Refused(f"{output} has no matching sentences: nothing was written")
    if written.beside is not None:
        write_whole(fs, f"{path}.xml", written.beside(tag_set).encode())
    return counter.count


def _selections(
    worst: int | None, issues: int | None, uncertain: int | None, ids: Sequence[str]
) -> tuple[tuple[str, object], ...]:
    return ("--worst", worst), ("--issues", issues), ("--uncertain", uncertain), ("--id", ids)


def _by_review(output: str, sentences: Iterable[Sentence], reviewed: bool) -> Iterator[Sentence]:
    """The sentences that have decisions, with the tags that they give and where nobody disagrees; or the others."""
    decisions = read_decided(output) if reviewed else read_decisions(output)
    rows = {(c.source, c.source_row): c for c in corrections(decisions, LEAVE)}
    for sentence in sentences:
        found = rows.get((sentence.source, sentence.source_row))
        if found is None and not reviewed:
            yield sentence
        elif found is not None and reviewed:
            tags = [found.changes[i][1] if i in found.changes else label for i, label in enumerate(sentence.labels)]
            yield replace(sentence, decided=tags)


class _Counted:
    """Sentences, counted as they go by."""

    def __init__(self, sentences: Iterable[Sentence]) -> None:
        self.sentences, self.count = sentences, 0

    def __iter__(self) -> Iterator[Sentence]:
        for sentence in self.sentences:
            self.count += 1
            yield sentence
