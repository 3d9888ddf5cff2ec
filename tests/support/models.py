"""Tiny, randomly initialised token-classification models, one for each encoder family, each with its own tokenizer.

`build("bert", folder, sentences, tags)` writes a folder for `AutoTokenizer` and `AutoModelForTokenClassification` to
load. Same arguments, same bytes: vocabularies and weights depend on the sentences and the seed alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, AutoTokenizer

VOCABULARY = 1000
SPECIAL_IDS = ("pad", "bos", "eos", "cls", "sep")
LOGIT_SPREAD = 2.0  # standard deviation of the logits: losses then run from near 0 to about 10


def build(
    family: str,
    folder: str | Path,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[str],
    *,
    seed: int = 0,
    max_length: int = 512,
    tokenizer_knows_limit: bool = True,
    padding_side: str = "right",
    special_tokens: bool = True,
    stale_tokenizer_json: bool = False,
) -> Path:
    """Write a tiny model and tokenizer of one family to `folder` and return the folder.

    family: a key of `FAMILIES`. sentences: lists of words, from which the vocabulary is made. tags: `id2label` in this
    order. max_length: the longest input, special tokens included, that the position embeddings hold;
    `tokenizer_knows_limit=False` leaves `model_max_length` unset, as many published tokenizers do.
    special_tokens=False: a tokenizer that adds nothing around a sentence. stale_tokenizer_json=True (BERT-like only):
    `tokenizer.json` holds settings that `AutoTokenizer` overrides, so that the file alone gives other tokens.
    """
    folder = Path(folder)
    make_tokenizer, settings = FAMILIES[family]
    tokenizer = make_tokenizer([" ".join(words) for words in sentences])
    if not special_tokens:
        tokenizer = _without_special_tokens(tokenizer)
    tokenizer.save_pretrained(folder)
    # Set as attributes of a new tokenizer these two would not be saved; given on loading they are.
    limit = {"model_max_length": max_length} if tokenizer_knows_limit else {}
    AutoTokenizer.from_pretrained(folder, padding_side=padding_side, **limit).save_pretrained(folder)
    if stale_tokenizer_json:
        _make_stale(folder / "tokenizer.json")
    # Loading may rebuild parts of the pipeline: what counts is the tokenizer that users of the folder get.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.padding_side != padding_side:
        raise RuntimeError(f"The tokenizer in {folder} does not pad on the {padding_side}.")

    # RoBERTa counts positions from pad_token_id + 1 on.
    offset = tokenizer.pad_token_id + 1 if family in ("roberta", "xlm-roberta") else 0
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL_IDS}
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length + offset,
        **special_ids,
        id2label=dict(enumerate(tags)),
        label2id={tag: i for i, tag in enumerate(tags)},
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32).eval()
    _spread_logits(model, tokenizer, sentences[:8], max_length)
    model.save_pretrained(folder)
    return folder


def _spread_logits(model: Any, tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int) -> None:
    """Scale and shift the classifier so that each class's logits have mean 0 and spread `LOGIT_SPREAD`.

    A fresh model answers nearly the same for every token and every loss is log(classes), which would hide most errors.
    """
    options = {"is_split_into_words": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    encodings = [tokenizer(list(words), **options) for words in sentences]
    with torch.no_grad():
        logits = torch.cat([model(e["input_ids"], attention_mask=e["attention_mask"]).logits[0] for e in encodings])
        scale = LOGIT_SPREAD / logits.std(dim=0)  # [classes]
        model.classifier.weight.mul_(scale[:, None])
        model.classifier.bias.sub_(logits.mean(dim=0)).mul_(scale)


# Tokenizers. WordPiece and Unigram vocabularies are counted here, because those trainers of the `tokenizers` library
# give slightly different results from one process to the next; its BPE trainer does not.


def _pieces(backend: Tokenizer, texts: list[str], inner_prefix: str) -> tuple[list[str], Counter[str]]:
    """Return the sorted single characters, and a count of beginnings and endings of words, as the backend splits them.

    `inner_prefix` marks pieces that do not begin a word ("##" in WordPiece).
    """
    characters: set[str] = set()
    pieces: Counter[str] = Counter()
    for text in texts:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            for i, character in enumerate(word):
                characters.add(inner_prefix + character if i else character)
            for cut in range(1, len(word)):
                pieces[word[:cut]] += 1
                pieces[inner_prefix + word[cut:]] += 1
            pieces[word] += 1
    return sorted(characters), pieces


def _most_useful(characters: list[str], pieces: Counter[str], room: int) -> list[str]:
    """Return `room` pieces: every single character, then those that cover most text, ties in alphabetical order."""
    longer = sorted(set(pieces) - set(characters), key=lambda piece: (-pieces[piece] * len(piece), piece))
    return (characters + longer)[:room]


def _wordpiece(class_name: str, **options: Any) -> Callable[[list[str]], Any]:
    """A BERT-like tokenizer."""

    def make(texts: list[str]) -> Any:
        cls = getattr(transformers, class_name)
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        backend = cls(vocab={token: i for i, token in enumerate(specials)}, **options).backend_tokenizer
        tokens = specials + _most_useful(*_pieces(backend, texts, "##"), room=VOCABULARY - len(specials))
        return cls(vocab={token: i for i, token in enumerate(tokens)}, **options)

    return make


def _unigram(class_name: str, specials: list[str]) -> Callable[[list[str]], Any]:
    """A SentencePiece-like tokenizer; `specials` come first, in the order of the published vocabularies."""

    def make(texts: list[str]) -> Any:
        cls = getattr(transformers, class_name)
        backend = cls(vocab=[(token, 0.0) for token in specials]).backend_tokenizer
        characters, pieces = _pieces(backend, texts, "")
        tokens = _most_useful(characters, pieces, room=VOCABULARY - len(specials))
        total = sum(pieces[token] + 1 for token in tokens)
        scores = [(token, math.log((pieces[token] + 1) / total)) for token in tokens]
        return cls(vocab=[(token, 0.0) for token in specials] + scores)

    return make


def _train_bpe(texts: list[str], specials: list[str], add_prefix_space: bool) -> Tokenizer:
    """Byte-level BPE trained on the texts, the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _roberta(texts: list[str]) -> Any:
    """RoBERTa's tokenizer, with its pad id of 1, and the leading space that pre-split words ask for."""
    trained = _train_bpe(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], add_prefix_space=True)
    model = json.loads(trained.to_str())["model"]
    merges: list[Any] = [tuple(merge) for merge in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges, add_prefix_space=True)


def _modernbert(texts: list[str]) -> Any:
    """ModernBERT's byte-level BPE: special tokens come last, so its pad id is large, and no space before a word."""
    tokenizer = _train_bpe(texts, [], add_prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def _without_special_tokens(tokenizer: Any) -> Any:
    """The same vocabulary and pre-tokenizer in a generic tokenizer whose post-processor adds nothing.

    The family's own class would put its post-processor back when loaded.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=tokenizer.unk_token, pad_token=tokenizer.pad_token
    )


def _make_stale(path: Path) -> None:
    """Put into a BERT-like `tokenizer.json` what published files also contain, and what has no effect on loading.

    Truncation and padding stay switched on from some earlier use, but a call of the tokenizer switches them off; and
    the class builds its normaliser from `tokenizer_config.json` alone.
    """
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=16)
    tokenizer.enable_padding(length=24)
    content = json.loads(tokenizer.to_str())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    path.write_text(json.dumps(content), encoding="utf-8")


# Families: how to make the tokenizer, and the settings of the model beside those that `build` gives all of them.

_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}

FAMILIES: dict[str, tuple[Callable[[list[str]], Any], dict[str, Any]]] = {
    "bert": (_wordpiece("BertTokenizer", do_lower_case=False), _ENCODER),
    "roberta": (_roberta, {**_ENCODER, "type_vocab_size": 1}),
    "xlm-roberta": (
        _unigram("XLMRobertaTokenizer", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        {**_ENCODER, "type_vocab_size": 1},
    ),
    "distilbert": (
        _wordpiece("DistilBertTokenizer", do_lower_case=False),
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "initializer_range": 0.2},
    ),
    "electra": (_wordpiece("BertTokenizer", do_lower_case=True), {**_ENCODER, "embedding_size": 16}),
    "deberta-v2": (
        _unigram("DebertaV2Tokenizer", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]),
        {
            **_ENCODER,
            "relative_attention": True,  # the settings of DeBERTa-v3
            "position_buckets": 16,
            "max_relative_positions": -1,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "albert": (
        _unigram("AlbertTokenizer", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        {**_ENCODER, "embedding_size": 16},
    ),
    "modernbert": (
        _modernbert,
        # A narrow local window: in the second layer most tokens are then out of each other's sight.
        {**_ENCODER, "global_attn_every_n_layers": 2, "local_attention": 8},
    ),
}
