"""Corrected labels back into the dataset they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.dataset.copy import check_target, copy_others, is_folder, read_unpacked, write_file
from tokloss_ray.exporting.dataset.fix_conll import fix_conll
from tokloss_ray.exporting.dataset.fix_parquet import fix_parquet
from tokloss_ray.exporting.dataset.fix_rows import ColumnOf, fix_arrow, fix_column, fix_jsonl
from tokloss_ray.exporting.dataset.fix_spans import Decided, fix_span_column, fix_span_json
from tokloss_ray.exporting.dataset.publish import whole_folder
from tokloss_ray.exporting.decided import REFUSE, corrections, is_folder_of_decisions, read_decided
from tokloss_ray.exporting.fixes import Applied, Fixes
from tokloss_ray.exporting.formats import format_of
from tokloss_ray.exporting.sentences import Correction
from tokloss_ray.inputs.arrow_file import MAGIC
from tokloss_ray.inputs.columns import ColumnOptions, find_columns, nested_column
from tokloss_ray.inputs.conll_layout import layout_of
from tokloss_ray.inputs.formats import format_named
from tokloss_ray.inputs.input_files import InputFile, InputFiles
from tokloss_ray.inputs.listing import Inspected, declared_tags, inspect_files, list_inputs
from tokloss_ray.inputs.span_columns import SpanOptions
from tokloss_ray.inputs.unit import Columns
from tokloss_ray.storage.files import kind_of, open_location, read_whole


def apply_fixes(
    corrected: str,
    dataset: str,
    output: str,
    *,
    tokens_column: str | None = None,
    labels_column: str | None = None,
    id_column: str | None = None,
    tags: tuple[str, ...] | None = None,
    split: str | None = None,
    reviewers: Sequence[str] = (),
    conflicts: str = REFUSE,
    text_column: str | None = None,
    spans_column: str | None = None,
    words: str | None = None,
    widen_spans: bool = False,
    label_map: Mapping[str, str] | None = None,
) -> Applied:
    """Copy a dataset with the tags that were corrected in `corrected`, and change nothing else.

    Args:
        corrected: an edited file of `tokloss export` in any of its formats, or what the annotation tool exports; or an
            output that was reviewed with `tokloss review`.
        dataset: the dataset that was scored, a file or folder: Parquet, JSON Lines, CoNLL columns, or a folder of
            `datasets`.
        output: the new file or folder, with the same layout as the dataset; must not exist.
        tokens_column, labels_column: as in `score`.
        id_column: match rows by this column instead of by file and row.
        tags: names for integer tags that the data does not name; or additional string tags to allow.
        split: split to read from a saved DatasetDict.
        reviewers: of a reviewed output, use only the decisions of these people.
        conflicts: where they disagree: "refuse", "leave" the labels as they are, or take the "latest" decision.
        text_column, spans_column, words, widen_spans, label_map: as in `score`, for text with labelled spans.

    Returns:
        How many rows, words and files were read and changed.

    Raises:
        Refused: something in `corrected` does not match the dataset; nothing was written.
        JobFailed: the copy could not be completed. There is nothing at `output` then, or, on object storage, perhaps a
            folder with the file `_INCOMPLETE`, which the same call replaces.

    Example:
        >>> import tokloss_ray
        >>> sentences = tokloss_ray.export("tokloss-demo", "to-correct.csv", "csv", worst=3)
        >>> done = tokloss_ray.apply_fixes("to-correct.csv", "panx_de_validation.parquet", "fixed.parquet")
        >>> done.rows_read, done.words_changed  # nobody has corrected anything yet
        (3, 0)
    """
    rows = merged(read_corrections(corrected, reviewers, conflicts), corrected)
    check_target(dataset, output)
    files = list_inputs([dataset], split)
    inspected = inspect_files(files, every=True)
    of_spans = SpanOptions(text_column, spans_column, words, widen_spans, label_map or {})
    columns = find_columns(ColumnOptions(tokens_column, labels_column, id_column, spans=of_spans), inspected)
    if columns.words is None:
        raise Refused(f"{dataset} holds token ids, not words: pass the dataset that has the words to --to")
    if nested := nested_column(columns, inspected):
        raise Refused(f"column {nested} is a field of another one, to which corrections cannot be written back")
    by_file = _by_file(rows, files, dataset, id_column)
    fixes = Fixes(columns.example_id is not None, tags)

    def each_file(use: Callable[[InputFile, bytes | None], None]) -> None:
        fixes.start_pass(rows)
        for item in inspected:
            fixes.of_file = by_file(item.file.source)
            new = _fixed(item, columns, fixes, tags)
            fixes.applied.files += 1
            fixes.applied.files_changed += new is not None
            use(item.file, new)
        fixes.check_all_found(dataset)

    each_file(lambda file, new: None)  # refuses before anything is written
    if not is_folder(dataset):
        each_file(lambda file, new: write_file(output, dataset, file, new))
        return fixes.applied
    changed: dict[str, bytes] = {}
    with whole_folder(output) as place:

        def write(file: InputFile, new: bytes | None) -> None:
            write_file(place, dataset, file, new)
            if new is not None:
                changed[open_location(file.listed.path)[1]] = hashlib.sha256(new).digest()

        each_file(write)
        copy_others(dataset, place, files, changed)
    return fixes.applied


def _fixed(item: Inspected, columns: Columns, fixes: Fixes, tags: tuple[str, ...] | None) -> bytes | None:
    """The new content of a file, unpacked; None if no row changes."""
    data = read_unpacked(item.file)
    if item.file.format == "conll":
        fixes.names = None  # tags are names, whatever `tags` says of integers
        layout = layout_of(item.file.listed.path, item.file.listed.version)
        return fix_conll(data, layout, columns, fixes.wanted, fixes.fix, fixes.seen)
    assert columns.words is not None
    assert columns.labels is not None
    form = item.file.format
    if form not in ("parquet", "arrow", "jsonl") or data.startswith(MAGIC):
        title = "an Arrow IPC file" if data.startswith(MAGIC) else format_named(form).title
        raise Refused(f"{item.file.source} is {title}, to which corrections cannot be written back: convert it first")
    column_of: ColumnOf
    if columns.spans is not None:
        fixes.names = None
        decided = Decided(fixes.wanted, fixes.fix, fixes.agrees, fixes.tags, fixes.seen)
        if form == "jsonl":
            return fix_span_json(data, columns, decided)
        assert columns.spans.spans is not None
        name, needed = columns.spans.spans, columns.names
        column_of = partial(fix_span_column, columns=columns, decided=decided)
    else:
        fixes.names = tags or (declared_tags(item.schema, columns.labels) if item.schema is not None else None)
        names = (columns.words, columns.labels, columns.example_id)
        if form == "jsonl":
            return fix_jsonl(data, names, fixes.wanted, fixes.fix, fixes.seen)
        name, needed = columns.labels, columns.names
        column_of = partial(fix_column, names=names, wanted=fixes.wanted, fix=fixes.fix, seen=fixes.seen)
    return fix_arrow(data, name, column_of) if form == "arrow" else fix_parquet(data, needed, name, column_of)


def read_corrections(corrected: str, reviewers: Sequence[str] = (), conflicts: str = REFUSE) -> Iterator[Correction]:
    """The corrections in a file, whichever format it has, or the decisions about an output.

    Raises:
        Refused: there is no such file, it is none of them, or reviewers disagree.
    """
    if is_folder_of_decisions(corrected):
        yield from corrections(read_decided(corrected, reviewers), conflicts)
        return
    if reviewers or conflicts != REFUSE:
        raise Refused(f"--reviewer and --conflicts are for an output that was reviewed, not for the file {corrected}")
    fs, path = open_location(corrected)
    if kind_of(fs, path) != "file":
        raise Refused(f"no such file: {corrected}")
    data = read_whole(fs, path)
    try:
        yield from format_of(data).read(data)
    except Refused as error:
        raise Refused(f"{corrected} cannot be used: {error}") from None


def merged(corrections: Iterator[Correction], corrected: str) -> dict[tuple[str, int], Correction]:
    """One correction a row, by source and source_row: a spreadsheet may have been sorted by anything.

    Raises:
        Refused: two lines say different things about a word.
    """
    rows: dict[tuple[str, int], Correction] = {}
    for new in corrections:
        row = rows.setdefault((new.source, new.source_row), Correction(new.example_id, new.source, new.source_row))
        for index, word in new.words.items():
            again = index in row.words
            if again and (row.words[index], row.changes.get(index)) != (word, new.changes.get(index)):
                raise Refused(f"{corrected} has word {index} of {row.name} twice, with different tags: remove one")
        row.words.update(new.words)
        row.changes.update(new.changes)
    return rows


Here = dict[int, Correction] | dict[str, Correction]


def _by_file(
    corrections: dict[tuple[str, int], Correction], files: InputFiles, dataset: str, id_column: str | None
) -> Callable[[str], Here]:
    """The corrections of a file of the dataset: by row, or with `id_column` all of them by id.

    Raises:
        Refused: the rows are of other files, or an id stands for two rows.
    """
    if id_column is not None:
        by_id: dict[str, Correction] = {}
        for row in corrections.values():
            if by_id.setdefault(row.example_id, row) is not row:
                raise Refused(f"two rows have the id {row.example_id}: leave out --id-column to match by file and row")
        return lambda source: by_id
    sources = list(dict.fromkeys(source for source, _ in corrections))
    known = {file.source for file in files}
    renamed = len(sources) == len(files) == 1
    strange = next((source for source in sources if source not in known and not renamed), None)
    if strange is not None:
        raise Refused(
            f"the labels are for {strange}, which {dataset} does not have: pass the scored dataset to --to, or the "
            f"column that score had as --id-column"
        )
    by_source: dict[str, dict[int, Correction]] = {file.source: {} for file in files}
    for (source, source_row), row in corrections.items():
        by_source[files[0].source if renamed else source][source_row] = row
    return lambda source: by_source[source]
