"""Cross-attention: the paper's formula, in float32 whatever is around it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_head import plain_pool

from wsi_ips.errors import ModelError
from wsi_ips.model.attention import CrossAttention


def _attention(dim: int = 12, queries: int = 2, heads: int = 3, seed: int = 0) -> CrossAttention:
    torch.manual_seed(seed)
    return CrossAttention(dim, queries, heads, 0.1).double().eval()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 9), st.integers(0, 99))
def test_a_part_of_the_bag_pools_by_the_papers_formula(queries: int, heads: int, m: int, seed: int) -> None:
    """For any number of queries and heads the finished pool of all tiles equals the formula written out."""
    attention = _attention(24, queries, heads, seed)
    bag = torch.randn(m, 24, dtype=torch.float64)
    assert torch.allclose(attention.finish(attention.pool_part(bag).mean), plain_pool(attention, bag), atol=1e-12)


def test_fault_109_logits_are_float32_even_inside_autocast() -> None:
    """Ranks come from float32 numbers; half precision around the call does not reach them."""
    attention = _attention().float()
    features = torch.randn(5, 12)
    plain = attention.head_logits(features)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention.head_logits(features)
    assert plain.shape == (5, 2, 3)
    assert inside.dtype == torch.float32
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
