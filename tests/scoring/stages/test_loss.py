"""Losses and probabilities, against torch's own in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokloss_ray.scoring.stages.loss import TokenScores, from_words, scattered, score_tokens, to_words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_cross_entropy_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    logits_TC = (torch.randn(200, 5) * 6).to(dtype)
    labels_T = torch.randint(0, 5, (200,))
    labels_T[::3] = -100
    scores = score_tokens(logits_TC, labels_T, keep_probs=True, keep_entropy=True)
    wide = logits_TC.double()
    expected = torch.nn.functional.cross_entropy(wide, labels_T, reduction="none")
    torch.testing.assert_close(scores.loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert (scores.loss[::3] == 0.0).all()
    probs = wide.softmax(-1)
    top = probs.topk(2, dim=-1)
    torch.testing.assert_close(scores.best_prob.double(), top.values[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.second_prob.double(), top.values[:, 1], rtol=1e-5, atol=1e-6)
    assert (scores.best == logits_TC.float().argmax(-1)).all()
    assert scores.probs is not None
    torch.testing.assert_close(scores.probs.double(), probs, rtol=1e-5, atol=1e-6)
    assert scores.loss.dtype == torch.float32
    assert scores.entropy is not None
    entropy = torch.distributions.Categorical(logits=wide).entropy()
    torch.testing.assert_close(scores.entropy.double(), entropy, rtol=1e-5, atol=1e-6)


def test_one_class_has_no_second() -> None:
    scores = score_tokens(torch.zeros(3, 1), torch.tensor([0, 0, -100]))
    assert scores.second.tolist() == [-1, -1, -1]
    assert scores.loss.tolist() == [0.0, 0.0, 0.0]


def some_scores(tokens: int, classes: int, keep_probs: bool, keep_entropy: bool = False) -> TokenScores:
    logits_TC = torch.randn(tokens, classes, generator=torch.Generator().manual_seed(tokens))
    logits_TC[::5, 0] = torch.nan
    return score_tokens(logits_TC, torch.arange(tokens) % classes, keep_probs, keep_entropy)


@pytest.mark.parametrize("keep_entropy", [True, False])
@pytest.mark.parametrize("keep_probs", [True, False])
@pytest.mark.parametrize(("tokens", "classes"), [(50, 7), (1, 1), (0, 3)])
def test_one_tensor_brings_everything_to_the_host(
    tokens: int, classes: int, keep_probs: bool, keep_entropy: bool
) -> None:
    """Bit for bit, and in one piece whatever is kept."""
    scores = some_scores(tokens, classes, keep_probs, keep_entropy)
    words = to_words(scores)
    assert words.dtype == torch.int32
    assert words.shape == (tokens * (6 + keep_entropy + classes * keep_probs),)
    on_host = from_words(words.numpy(), tokens, classes * keep_probs, int(keep_entropy))
    for got, wanted in zip(on_host, scores, strict=True):
        if wanted is None:
            assert got.shape == (tokens, 0)
        else:
            np.testing.assert_array_equal(got.reshape(wanted.shape), wanted.numpy())


def test_parts_are_put_where_they_belong() -> None:
    """Positions that no part has stay zero: of sequences that were not scored."""
    sizes = (20, 13)
    where = np.random.default_rng(0).permutation(40)[: sum(sizes)]
    parts = [some_scores(size, 4, True, True) for size in sizes]
    on_host = [from_words(to_words(part).numpy(), size, 4, 1) for part, size in zip(parts, sizes, strict=True)]
    whole = scattered(zip(np.split(where, [sizes[0]]), on_host, strict=True), 40, 4, 1)
    for got, *wanted in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(got[where].reshape(torch.cat(wanted).shape), torch.cat(wanted).numpy())
        assert not np.delete(got, where, axis=0).any()
