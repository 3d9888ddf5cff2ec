"""spaCy: a DocBin, as `spacy train` and `spacy evaluate` read it, and a DocBin with other entities back.

https://spacy.io/api/docbin is the format. spaCy itself writes and reads it, and is imported only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tokloss_ray.errors import Refused
from tokloss_ray.exporting.format import ExportFormat
from tokloss_ray.exporting.json_lines import OURS
from tokloss_ray.exporting.regions import Region, correction_of, fields_of, is_ours, text_of
from tokloss_ray.exporting.sentences import Correction, Sentence
from tokloss_ray.tags.schemes import TagSet
from tokloss_ray.tags.sentence_spans import spans_of

if TYPE_CHECKING:
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

PREDICTED = "predicted"
"""The span group with the model's entities."""


def doc_bin(sentences: Iterable[Sentence], tag_set: TagSet) -> Iterator[bytes]:
    """All sentences as one DocBin: entities in `doc.ents`, the model's in `doc.spans["predicted"]`.

    Raises:
        Refused: spaCy is not installed.
    """
    tokens, vocab = _spacy()
    bin_ = tokens.DocBin(attrs=["ENT_IOB", "ENT_TYPE"], store_user_data=True)
    for sentence in sentences:
        bin_.add(_doc(sentence, tag_set, vocab))
    yield bin_.to_bytes()


def _doc(sentence: Sentence, tag_set: TagSet, vocab: Vocab) -> Doc:
    """A word that is empty or white space is drawn, because spaCy has no such tokens."""
    tokens, _ = _spacy()
    text, starts, ends = text_of(sentence.words)
    spaces = [end < len(text) for end in ends]
    doc = tokens.Doc(vocab, words=[text[s:e] for s, e in zip(starts, ends, strict=True)], spaces=spaces)
    doc.ents = [tokens.Span(doc, s.start, s.end, label=s.type) for s in spans_of(sentence.corrected, tag_set)]
    doc.spans[PREDICTED] = [
        tokens.Span(doc, s.start, s.end, label=s.type) for s in spans_of(sentence.predicted, tag_set)
    ]
    doc.user_data[OURS] = fields_of(sentence, tag_set) | {"total_loss": round(sentence.total_loss, 6)}
    return doc


def read_doc_bin(data: bytes) -> Iterator[Correction]:
    """The entities of each document as one correction.

    Raises:
        Refused: spaCy is not installed, it is not a DocBin, or one that `tokloss export` has not written.
    """
    tokens, vocab = _spacy()
    try:
        docs = list(tokens.DocBin(store_user_data=True).from_bytes(data).get_docs(vocab))
    except Exception as error:  # zlib, msgpack and spaCy each have their own
        raise Refused(f"spaCy cannot read it: {error}") from None
    for number, doc in enumerate(docs, start=1):
        fields = {name: _listed(value) for name, value in (doc.user_data.get(OURS) or {}).items()}
        if not is_ours(fields):
            raise Refused(f"document {number} has no user data {OURS}: export it with tokloss export")
        regions = [Region(span.start_char, span.end_char, span.label_) for span in doc.ents]
        yield correction_of(fields, [regions], "spaCy")


def _listed(value: Any) -> Any:
    """spaCy gives lists back as tuples."""
    return list(value) if isinstance(value, tuple) else value


def _spacy():  # type: ignore[no-untyped-def]
    """spaCy's module of tokens, and an empty vocabulary."""
    try:
        import spacy.tokens
        import spacy.vocab
    except ImportError:
        raise Refused("--format spacy needs spaCy: pip install 'tokloss-ray[spacy]'") from None
    return spacy.tokens, spacy.vocab.Vocab()


SPACY = ExportFormat(
    name="spacy",
    write=lambda sentences, tag_set, loss: doc_bin(sentences, tag_set),
    read=read_doc_bin,
    recognises=lambda data: data.startswith(b"\x78\x9c"),  # zlib, and no text in UTF-8
    next_step="Train or evaluate with it. After changing doc.ents, save the DocBin with its user data, then:",
)
