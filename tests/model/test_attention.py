"""Cross-attention: sums to one, ignores padding, has an answer for an empty bag."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ModelError
from wsi_ips.model.attention import CrossAttention


def _attention(dim: int = 12, queries: int = 2, heads: int = 3, seed: int = 0) -> CrossAttention:
    torch.manual_seed(seed)
    return CrossAttention(dim, queries, heads, 0.1).double().eval()


def _written_out(a: CrossAttention, bag: torch.Tensor) -> torch.Tensor:
    """One bag (m, D) -> (T, D), head by head as the paper has it."""
    d = a.dim // a.n_heads
    out = []
    for query in a.query:
        pooled = []
        for h in range(a.n_heads):
            part = slice(h * d, (h + 1) * d)
            q = (a.to_query.weight @ query)[part]
            k, v = bag @ a.to_key.weight[part].T, bag @ a.to_value.weight[part].T
            pooled.append(torch.softmax(k @ q / math.sqrt(d), 0) @ v)
        z = a.norm_pooled(query + a.to_out.weight @ torch.cat(pooled))
        out.append(a.norm_out(z + a.mlp(z)))
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 9), st.integers(0, 99))
def test_it_computes_the_papers_formula(queries: int, heads: int, m: int, seed: int) -> None:
    """For any number of queries and heads the pooled embedding equals the formula written out."""
    attention = _attention(24, queries, heads, seed)
    bag = torch.randn(m, 24, dtype=torch.float64)
    assert torch.allclose(attention(bag[None])[0], _written_out(attention, bag), atol=1e-12)


def test_weights_sum_to_one() -> None:
    """Every head of every query spreads exactly 1 over the bag."""
    weights = _attention().weights(5 * torch.randn(2, 7, 12, dtype=torch.float64))
    assert weights.shape == (2, 7, 2, 3)
    assert torch.allclose(weights.sum(1), torch.ones(2, 2, 3, dtype=torch.float64), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.integers(1, 5), st.sampled_from([0.0, 1e6, float("nan"), float("inf")]))
def test_padding_equals_no_padding(m: int, padding: int, filling: float) -> None:
    """Whatever stands in the padding, the pooled embedding and its gradient are those of the short bag."""
    attention = _attention()
    bag = torch.randn(1, m, 12, dtype=torch.float64, requires_grad=True)
    padded = torch.cat([bag, torch.full((1, padding, 12), filling, dtype=torch.float64)], 1)
    mask = torch.arange(m + padding)[None] < m
    short, long = attention(bag), attention(padded, mask)
    assert torch.allclose(short, long, atol=1e-12)
    if m:
        wanted = torch.autograd.grad(short.square().sum(), bag)[0]
        found = torch.autograd.grad(attention(padded, mask).square().sum(), bag)[0]
        assert torch.allclose(wanted, found, atol=1e-10)


def test_an_empty_bag_is_the_query_alone() -> None:
    """No tile pools to zero: the residual query goes through the MLP, and nothing is NaN."""
    attention = _attention()
    z = attention.norm_pooled(attention.query)
    alone = attention.norm_out(z + attention.mlp(z))
    assert torch.allclose(attention(torch.zeros(1, 0, 12))[0], alone)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert torch.allclose(attention(torch.zeros(1, 3, 12), nothing)[0], alone)
    assert not attention.weights(torch.zeros(1, 3, 12), nothing).any()


def test_logits_are_float32_even_inside_autocast() -> None:
    """Ranks come from float32 numbers; half precision around the call does not reach them."""
    attention = _attention().float()
    features = torch.randn(5, 12)
    plain = attention.head_logits(features)
    with torch.autocast("cpu", torch.bfloat16):
        inside, pooled = attention.head_logits(features), attention(features[None])
    assert plain.shape == (5, 2, 3)
    assert inside.dtype == pooled.dtype == torch.float32
    assert torch.equal(plain, inside)


def test_the_query_starts_small() -> None:
    """Queries start uniform within +-1 / sqrt(D_k)."""
    query = CrossAttention(512, 4, 8).query
    assert query.abs().max() <= 1 / 8
    assert query.abs().max() > 0.9 / 8


def test_heads_must_divide_the_width() -> None:
    """An impossible split is refused with the settings to change."""
    with pytest.raises(ModelError, match=r"5 heads .* 12; set attention\.n_heads"):
        CrossAttention(12, 1, 5)
