"""Reading entity spans from tag sequences: IOB1, IOB2, IOBES, BILOU and plain IO.

Two readings, as in seqeval (Nakayama 2018):

- `default`, lenient, as the conlleval script of CoNLL-2000 reads: each word with a tag other than O belongs to a span;
  a tag that cannot go on begins a new one (I-PER after O begins a span).
- `strict`: a span counts only if the scheme allows it as a whole (I-PER after O belongs to none).

A word that is missing between two labelled words (its tag is null, or it became no token) ends a span: what is not
known to be one entity is not taken for one. seqeval, given the labelled words alone, joins them: `bridge_gaps=True`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokloss_ray.errors import Refused

OUTSIDE = "O"
DEFAULT, STRICT = "default", "strict"
MODES = (DEFAULT, STRICT)
IO, IOB1, IOB2, IOBES, BILOU = "IO", "IOB1", "IOB2", "IOBES", "BILOU"
SCHEMES = (IO, IOB1, IOB2, IOBES, BILOU)
UNNAMED = "_"
"""The type of tags that have a prefix alone, such as B; as in seqeval."""

_O, _B, _I, _E, _S = range(5)
# M and W are what BMES and BMEWO write for I and S; L and U are BILOU's names of E and S.
_PREFIXES = {"B": _B, "I": _I, "M": _I, "E": _E, "L": _E, "S": _S, "W": _S, "U": _S}
_PREFIXED = re.compile(r"([BIMELSWU])(?:[-_](.*))?", re.DOTALL)

# What a scheme does not allow, by the word at which it shows.
BEGINS_INSIDE = "begins_inside"
TYPE_CHANGES = "type_changes"
AFTER_END = "after_end"
NOT_ENDED = "not_ended"
NEEDLESS_BEGIN = "needless_begin"
MALFORMED = (BEGINS_INSIDE, TYPE_CHANGES, AFTER_END, NOT_ENDED, NEEDLESS_BEGIN)
"""Kinds of malformed tags: I or E where nothing has begun (I-PER after O); where another type has; after an E or S;
B or I with no end after it (IOBES, BILOU); B where IOB1 wants I."""


@dataclass(frozen=True)
class TagSet:
    """The C tags of a model, read by a scheme.

    Attributes:
        scheme: one of `SCHEMES`.
        tags: the tags by code.
        types: the entity types, sorted.
        prefix: [C] int8, what a tag's prefix means: 0 O, 1 B, 2 I, 3 E (L), 4 S (U).
        type: [C] int32, index into `types`, -1 for O.
    """

    scheme: str
    tags: tuple[str, ...]
    types: tuple[str, ...]
    prefix: np.ndarray
    type: np.ndarray


class Spans(NamedTuple):
    """M spans in the order of words: [start, stop) in the flat array of words, and the type's index; each [M] int64."""

    start: np.ndarray
    stop: np.ndarray
    type: np.ndarray


def read_tag_set(tags: tuple[str, ...], scheme: str | None = None) -> TagSet | None:
    """The scheme of a model's tags, found by their names unless it is given, and the types.

    IOB1 has the tags of IOB2 and must be named. Tags without prefixes beside an O are read as IO: a run of one tag is a
    span. A type may contain hyphens (B-PART-OF has type PART-OF). None where tags mark no spans: no O and no
    prefix, as in part-of-speech tagging.

    Raises:
        Refused: the named scheme is unknown, or a tag does not belong to it.
    """
    others = [tag for tag in tags if tag != OUTSIDE]
    parsed = {tag: _PREFIXED.fullmatch(tag) for tag in others}
    prefixed = bool(others) and all(parsed.values())
    letters = {match[1] for match in parsed.values() if match} if prefixed else set()
    found = _scheme_of(letters) if prefixed else IO if OUTSIDE in tags and others else None
    if scheme is not None:
        _check_scheme(scheme, letters, others)
        found = scheme
    if found is None:
        return None
    names = {tag: (match[2] or UNNAMED) if prefixed and match else tag for tag, match in parsed.items()}
    types = tuple(sorted(set(names.values())))
    number = {name: i for i, name in enumerate(types)}
    prefix = [
        _O if tag == OUTSIDE else _PREFIXES[match[1]] if prefixed and (match := parsed[tag]) else _I for tag in tags
    ]
    kind = [-1 if tag == OUTSIDE else number[names[tag]] for tag in tags]
    return TagSet(found, tags, types, np.array(prefix, np.int8), np.array(kind, np.int32))


def _scheme_of(letters: set[str]) -> str:
    if letters & set("LU"):
        return BILOU
    if letters & set("ESMW"):
        return IOBES
    return IOB2 if "B" in letters else IO


_LETTERS = {IO: set("I"), IOB1: set("BI"), IOB2: set("BI"), IOBES: set("BIMESW"), BILOU: set("BILU")}


def _check_scheme(scheme: str, letters: set[str], others: list[str]) -> None:
    if scheme not in SCHEMES:
        raise Refused(f"unknown tag scheme {scheme}: choose one of {', '.join(SCHEMES)}")
    if (letters and not letters <= _LETTERS[scheme]) or (not letters and scheme != IO):
        raise Refused(f"the tags {', '.join(others[:8])} are not {scheme}: choose another scheme, or none")


def breaks_of(offsets: np.ndarray, word_index: np.ndarray, bridge_gaps: bool = False) -> np.ndarray:
    """[N] bool: words at which no span goes on from the word before: the first of a sequence, or after a missing word.

    offsets: [S + 1]. word_index: [N], index of each word in its row. bridge_gaps: a missing word ends no span.
    """
    first = np.zeros(len(word_index) + 1, dtype=bool)
    first[offsets] = True
    first = first[:-1]
    if not bridge_gaps and len(word_index):
        first = first | (np.diff(word_index, prepend=word_index[0]) > 1)
    return first


def read_spans(codes: np.ndarray, breaks: np.ndarray, tag_set: TagSet, mode: str = DEFAULT) -> Spans:
    """The spans of N tag codes; `breaks` [N] bool as `breaks_of` gives it.

    `default` equals seqeval's `get_entities` and `strict` its schemes, for tags of IOB1, IOB2 and IOBES. BILOU is read
    as IOBES by other names: the default mode of seqeval does not know L and U.
    """
    prefix, kind = tag_set.prefix[codes], tag_set.type[codes]
    goes_on = _joins(prefix, kind, breaks)[1]
    if mode == STRICT and tag_set.scheme == IOB1:
        # A B after O or after another type is no beginning in IOB1: the I after it is.
        misplaced = (prefix == _B) & ~_same_type_before(prefix, kind, breaks)
        goes_on &= ~np.append(False, misplaced)[:-1]
    inside = prefix != _O
    start = np.flatnonzero(inside & ~goes_on)
    stop = np.flatnonzero(inside & ~np.append(goes_on, False)[1:]) + 1
    if mode == STRICT:
        allowed = _allowed(tag_set.scheme, prefix, kind, breaks, start, stop)
        start, stop = start[allowed], stop[allowed]
    return Spans(start, stop, kind[start].astype(np.int64))


def _joins(prefix: np.ndarray, kind: np.ndarray, breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prefix before each word (O at breaks), and whether the word goes on with the lenient span before it."""
    before = np.where(breaks, _O, np.append(_O, prefix)[:-1]).astype(np.int8)
    same = kind == np.append(-1, kind)[:-1]
    goes_on = ((prefix == _I) | (prefix == _E)) & ((before == _B) | (before == _I)) & same
    return before, goes_on


def _same_type_before(prefix: np.ndarray, kind: np.ndarray, breaks: np.ndarray) -> np.ndarray:
    before = np.where(breaks, -1, np.append(-1, kind)[:-1])
    return (prefix != _O) & (before == kind)


def _allowed(
    scheme: str, prefix: np.ndarray, kind: np.ndarray, breaks: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> np.ndarray:
    """Which of the runs [start, stop) are spans in strict mode."""
    first, last = prefix[start], prefix[stop - 1]
    if scheme == IOB2:
        return first == _B
    if scheme in (IOBES, BILOU):
        return ((first == _B) & (last == _E) & (stop - start > 1)) | ((first == _S) & (stop - start == 1))
    if scheme == IOB1:
        # seqeval ends no span between B-X and B-Y, so that a B alone before another type's B is none.
        following = np.append(prefix, _O)[stop] == _B
        broken = np.append(breaks, True)[stop]
        other = np.append(kind, -1)[stop] != kind[start]
        cut_off = (last == _B) & following & ~broken & other
        return ((first == _I) | _same_type_before(prefix, kind, breaks)[start]) & ~cut_off
    return np.ones(len(start), dtype=bool)


def malformed_words(
    codes: np.ndarray, offsets: np.ndarray, word_index: np.ndarray, tag_set: TagSet, bridge_gaps: bool = False
) -> dict[str, np.ndarray]:
    """Where N tag codes break the rules of their scheme: for each kind of `MALFORMED` the positions, [n] int64.

    Of the words beside a missing one (unless `bridge_gaps`) nothing is said that depends on it.
    """
    prefix, kind = tag_set.prefix[codes], tag_set.type[codes]
    breaks = breaks_of(offsets, word_index, bridge_gaps=True)
    before, goes_on = _joins(prefix, kind, breaks)
    after_gap = breaks_of(offsets, word_index, bridge_gaps) & ~breaks
    before_gap = np.append(after_gap, False)[1:]
    inner = (prefix == _I) | (prefix == _E)
    broken = {kind_of: np.zeros(len(codes), dtype=bool) for kind_of in MALFORMED}
    if tag_set.scheme == IOB1:
        broken[NEEDLESS_BEGIN] = (prefix == _B) & ~_same_type_before(prefix, kind, breaks) & ~after_gap
    elif tag_set.scheme != IO:
        broken[BEGINS_INSIDE] = inner & (before == _O) & ~after_gap
        broken[TYPE_CHANGES] = inner & ((before == _B) | (before == _I)) & ~goes_on & ~after_gap
    if tag_set.scheme in (IOBES, BILOU):
        broken[AFTER_END] = inner & ((before == _E) | (before == _S)) & ~after_gap
        broken[NOT_ENDED] = ((prefix == _B) | (prefix == _I)) & ~np.append(goes_on, False)[1:] & ~before_gap
    return {name: np.flatnonzero(found) for name, found in broken.items()}


ENOUGH_BEGINNINGS = 5
"""Entities that it takes to tell IOB1 from IOB2. In corpora of IOB2 hardly an entity begins with I; in IOB1 all do but
those that touch one of their type."""


def begins_with_inside(
    codes: np.ndarray, offsets: np.ndarray, word_index: np.ndarray, tag_set: TagSet
) -> tuple[int, int]:
    """How many entities begin with I, and how many there are: what tells IOB1 and IO from IOB2.

    Left out are those that touch one of their type, where all schemes write B, and those behind a missing word.
    """
    prefix, kind = tag_set.prefix[codes], tag_set.type[codes]
    breaks = breaks_of(offsets, word_index, bridge_gaps=True)
    after_gap = breaks_of(offsets, word_index) & ~breaks
    begins = (prefix != _O) & ~_same_type_before(prefix, kind, breaks) & ~after_gap
    return int((begins & (prefix == _I)).sum()), int(begins.sum())


def is_mostly(part: int, whole: int) -> bool:
    """Whether so many of the beginnings say that it is a rule and no slip."""
    return whole >= ENOUGH_BEGINNINGS and 2 * part > whole


def write_spans(spans: Spans, length: int, tag_set: TagSet) -> np.ndarray:
    """[length] int32: the tag codes that spell these spans, in the scheme's own rules, and O elsewhere.

    Spans that touch and are of one type cannot be told apart in IO; in IOB1 the second begins with B. Where the model
    lacks a tag (a type without S, say), the nearest that it has stands in.
    """
    single = spans.stop - spans.start == 1
    first, last = spans.start, spans.stop - 1
    prefix = np.full(length, _O, dtype=np.int64)
    kind = np.full(length, -1, dtype=np.int64)
    sizes = spans.stop - spans.start
    inside = np.repeat(first, sizes) + _within(sizes)
    prefix[inside], kind[inside] = _I, np.repeat(spans.type, sizes)
    if tag_set.scheme == IOB1:
        touches = (spans.stop[:-1] == first[1:]) & (spans.type[:-1] == spans.type[1:])
        prefix[first[1:][touches]] = _B
    elif tag_set.scheme != IO:
        prefix[first] = _B
    if tag_set.scheme in (IOBES, BILOU):
        prefix[last] = _E
        prefix[first[single]] = _S
    return _code_table(tag_set)[prefix, kind]


def _within(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... of each of several runs."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)


_INSTEAD = {_O: (_O,), _B: (_B, _I, _S, _E), _I: (_I, _E, _B, _S), _E: (_E, _I, _B, _S), _S: (_S, _B, _I, _E)}


def _code_table(tag_set: TagSet) -> np.ndarray:
    """Code of a tag by prefix and type; the last column is that of O (type -1)."""
    table = np.zeros((5, len(tag_set.types) + 1), dtype=np.int32)
    codes = {(int(p), int(t)): code for code, (p, t) in enumerate(zip(tag_set.prefix, tag_set.type, strict=True))}
    table[:, -1] = codes.get((_O, -1), 0)
    for prefix, choices in _INSTEAD.items():
        for number in range(len(tag_set.types)):
            there = [codes[choice, number] for choice in choices if (choice, number) in codes]
            table[prefix, number] = there[0] if there else 0
    return table
