"""`kept_indices` against the kept-set rule, the reference and `filter_logits`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import ROW_KINDS, assert_kept, generator, make_rows, random_parameters

import autodeco_ext
from autodeco_ext import KeptIndices, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF = float("inf")
NAN = float("nan")


def parameters_of(rows: int, vocab: int, seed: int) -> dict[str, torch.Tensor]:
    """Random ones, valid_vocab among them."""
    valid = 1 + vocab * torch.rand(rows, generator=generator(seed))
    every_fifth = torch.arange(rows) % 5 == 0
    parameters = random_parameters(rows, vocab, seed)
    return {**parameters, "valid_vocab": valid.long().where(every_fifth, vocab)}


def mask_of(kept: KeptIndices, vocab: int) -> torch.Tensor:
    """bool [rows, vocab]; fails where ids are not ascending columns of their row."""
    sizes = kept.offsets.diff()
    assert kept.offsets[0] == 0
    assert (sizes >= 0).all()
    rows = torch.arange(len(sizes)).repeat_interleave(sizes)
    ids = kept.ids[: len(rows)].long()
    assert ((ids >= 0) & (ids < vocab)).all()
    assert (ids.diff()[rows.diff() == 0] > 0).all()
    mask = torch.zeros(len(sizes), vocab, dtype=torch.bool)
    mask[rows, ids] = True
    return mask


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_the_kept_set_of_every_row(backend: str, kind: str, dtype: torch.dtype) -> None:
    for vocab in (1, 2, 17, 600, 5000):
        logits = make_rows(kind, 60, vocab, dtype, generator(vocab))
        parameters = parameters_of(60, vocab, seed=vocab)
        parameters["valid_vocab"][logits[:, 0] == -INF] = vocab  # else nothing may be left
        kept = autodeco_ext.kept_indices(logits, **parameters)
        mask = mask_of(kept, vocab)
        assert_kept(logits, mask, **parameters)
        assert torch.equal(mask, autodeco_ext.filter_logits(logits, **parameters) > -INF)
        assert kept.ids.shape == (kept.offsets[-1],)


def test_equals_the_reference(backend: str) -> None:
    logits = make_rows("gaussian", 50, 999, torch.float32, generator(1))
    for parameters in ({}, {"top_k": 7}, {"temperature": 0.0}, {"valid_vocab": 500}):
        got = autodeco_ext.kept_indices(logits, **parameters)
        expected = reference.kept_indices(logits, **parameters)
        assert got.offsets.dtype == torch.int64
        assert got.ids.dtype == torch.int32
        for field in ("offsets", "ids"):
            assert torch.equal(getattr(got, field), getattr(expected, field))


def test_the_reference_is_the_kept_mask() -> None:
    logits = make_rows("tied", 40, 300, torch.float32, generator(2)).view(5, 8, 300)
    expected = reference.kept_mask(logits, 0.8, 0.9, 100, 0.01).view(40, 300)
    kept = reference.kept_indices(logits, 0.8, 0.9, 100, 0.01)
    assert torch.equal(mask_of(kept, 300), expected)
    for capacity in (0, 3, len(kept.ids), len(kept.ids) + 5):
        limited = reference.kept_indices(logits, 0.8, 0.9, 100, 0.01, capacity=capacity)
        assert torch.equal(limited.offsets, kept.offsets)
        fitting = kept.ids[:capacity].tolist()
        assert limited.ids.tolist() == fitting + [-1] * (capacity - len(fitting))


def test_ties_at_the_boundary_keep_the_lowest_columns(backend: str) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 3.0], [-0.0, 0.0, -0.0, 0.0, -0.0, 0.0]])
    kept = autodeco_ext.kept_indices(logits, top_k=torch.tensor([2, 3]))
    assert kept.ids.tolist() == [1, 3, 0, 1, 2]
    assert kept.offsets.tolist() == [0, 2, 5]
    flat = autodeco_ext.kept_indices(torch.zeros(1, 4096), top_p=0.5)
    assert flat.ids.tolist() == list(range(2048))


def test_excluded_tokens_are_never_kept(backend: str) -> None:
    logits = torch.zeros(2, 1000)
    logits[0, 3:] = -INF
    logits[1, ::2] = -INF
    kept = autodeco_ext.kept_indices(logits)
    assert kept.ids.tolist() == [0, 1, 2, *range(1, 1000, 2)]
    # More than there are.
    kept = autodeco_ext.kept_indices(logits, top_k=700)
    assert kept.offsets.tolist() == [0, 3, 503]


def test_offsets_stay_true_where_the_capacity_is_too_small(backend: str) -> None:
    logits = make_rows("gaussian", 30, 700, torch.float32, generator(3))
    parameters = parameters_of(30, 700, seed=4)
    whole = autodeco_ext.kept_indices(logits, **parameters)
    total = len(whole.ids)
    assert total > 50
    for capacity in (0, 1, total // 2, total - 1, total, total + 1, 3 * total):
        kept = autodeco_ext.kept_indices(logits, **parameters, capacity=capacity)
        assert torch.equal(kept.offsets, whole.offsets)
        fitting = whole.ids[:capacity]
        assert kept.ids.tolist() == fitting.tolist() + [-1] * (capacity - len(fitting))


def test_leading_dimensions_are_flattened_and_strides_read_in_place(backend: str) -> None:
    cube = make_rows("gaussian", 24, 130, torch.bfloat16, generator(4)).view(4, 6, 130)
    for view in (
        cube,
        cube[0, 0],
        cube[:, -1, 1:],
        cube[:, ::2, :77],
        cube.transpose(0, 1),
        cube[1:3, 1::2, 3:120],
    ):
        temperature = torch.linspace(0.3, 2, view[..., 0].numel()).view(view.shape[:-1])
        kept = autodeco_ext.kept_indices(view, temperature, 0.8)
        flat = view.reshape(-1, view.shape[-1])
        expected = autodeco_ext.kept_indices(flat, temperature.flatten(), 0.8)
        assert kept.offsets.shape == (len(flat) + 1,)
        assert torch.equal(kept.offsets, expected.offsets)
        assert torch.equal(kept.ids, expected.ids)


def test_zero_rows_have_one_offset_and_no_ids(backend: str) -> None:
    for shape in ((0, 5), (2, 0, 5)):
        kept = autodeco_ext.kept_indices(torch.zeros(shape), 0.7, 0.9)
        assert kept.offsets.tolist() == [0]
        assert kept.ids.shape == (0,)
    assert autodeco_ext.kept_indices(torch.zeros(0, 5), capacity=3).ids.tolist() == [-1, -1, -1]


def test_an_allocation_that_fails_is_named_with_the_reason_that_torch_gives() -> None:
    with pytest.raises(RuntimeError) as caught:
        autodeco_ext.kept_indices(torch.zeros(1, 5), capacity=1 << 50)
    message = str(caught.value)
    assert message.startswith(f"autodeco_ext: could not allocate a tensor of shape [{1 << 50}]")
    if torch.__version__ >= "2.13":  # before that its stable ABI does not say
        assert "allocate memory" in message


def test_a_row_that_is_invalid_has_no_ids_without_check(backend: str) -> None:
    logits = make_rows("gaussian", 6, 1500, torch.float32, generator(5))
    whole = autodeco_ext.kept_indices(logits, 0.9, 0.9, check=False)
    temperature = torch.full((6,), 0.9)
    temperature[5] = -1.0
    logits[1, 1400] = NAN
    logits[3] = -INF
    logits[4, 2] = INF
    kept = autodeco_ext.kept_indices(logits, temperature, 0.9, check=False)
    sizes = kept.offsets.diff()
    assert sizes[[1, 3, 4, 5]].tolist() == [0, 0, 0, 0]
    expected = mask_of(whole, 1500)
    expected[[1, 3, 4, 5]] = False
    assert torch.equal(mask_of(kept, 1500), expected)
    with pytest.raises(ValueError, match=r"kept_indices: logits must not contain NaN, got NaN in"):
        autodeco_ext.kept_indices(logits, check=True)


def test_bad_values_beyond_valid_vocab_do_not_matter(backend: str) -> None:
    logits = torch.zeros(2, 6)
    logits[:, 4:] = NAN
    assert autodeco_ext.kept_indices(logits, valid_vocab=4).ids.tolist() == [0, 1, 2, 3] * 2


def test_results_do_not_depend_on_the_number_of_threads(
    backend: str, set_num_threads: Callable[[int], None]
) -> None:
    logits = make_rows("gaussian", 40, 20_000, torch.float32, generator(8))
    results = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        results.append(autodeco_ext.kept_indices(logits, 1.3, 0.9))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_truncation_of_a_rollout_can_be_replayed(backend: str) -> None:
    logits = make_rows("peaked", 8, 4000, torch.float32, generator(9))
    info = autodeco_ext.sample(logits, 0.8, 0.9, seed=1, return_info=True)
    kept = autodeco_ext.kept_indices(logits, 0.8, 0.9)
    assert torch.equal(kept.offsets.diff(), info.kept)
    rows = torch.arange(8).repeat_interleave(kept.offsets.diff())
    truncated = torch.full_like(logits, -INF)
    truncated[rows, kept.ids] = logits[rows, kept.ids] / 0.8
    logprobs = truncated.log_softmax(-1).gather(-1, info.tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, info.logprobs)


def test_no_output_carries_a_gradient() -> None:
    kept = autodeco_ext.kept_indices(torch.zeros(2, 3, requires_grad=True))
    assert not kept.ids.requires_grad
    with torch.inference_mode():
        assert autodeco_ext.kept_indices(torch.zeros(2, 3)).offsets.tolist() == [0, 3, 6]


@pytest.mark.slow
def test_with_a_capacity_it_compiles_to_one_graph() -> None:
    logits = make_rows("gaussian", 6, 400, torch.float32, generator(6))

    def step(x: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return autodeco_ext.kept_indices(x * 2, temperature, 0.9, 50, valid_vocab=390, capacity=100)

    compiled = torch.compile(step, fullgraph=True)
    for scale in (1.0, 0.3):
        temperature = scale * torch.linspace(0.1, 2, 6)
        for got, expected in zip(
            compiled(logits, temperature), step(logits, temperature), strict=True
        ):
            assert torch.equal(got, expected)


@pytest.mark.slow
def test_the_capacity_may_depend_on_a_shape_in_a_compiled_graph() -> None:
    def step(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return autodeco_ext.kept_indices(x, top_k=3, capacity=4 * x.shape[0])

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (2, 5, 9):
        logits = make_rows("gaussian", rows, 40, torch.float32, generator(rows))
        for got, expected in zip(compiled(logits), step(logits), strict=True):
            assert torch.equal(got, expected)
