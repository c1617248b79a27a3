"""`autodeco_loss`, `soft_top_p_loss`: losses and gradients of each row against the exact ones."""

from __future__ import annotations

import pytest
import torch
from loss_judge import IGNORE, LossResults, assert_losses_exact, keywords, run_losses
from loss_oracle import MEGATRON, RELEASED, LossOptions, SortedRow, exact_soft_top_p_loss
from oracle import ROW_KINDS, make_rows
from torch import Tensor

import autodeco_ext
from autodeco_ext import reference

INF, NAN = float("inf"), float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL_OPTIONS = {
    "exclusive": RELEASED._replace(exclusive=True),
    "megatron": MEGATRON,
    "exclusive megatron": MEGATRON._replace(exclusive=True, steepness=7.3),
    "large eps": RELEASED._replace(mass_eps=1e-3, probability_eps=1e-2),
    "no eps": RELEASED._replace(mass_eps=0.0, probability_eps=0.0),
    "not steep": RELEASED._replace(steepness=0.0),
    "steep": RELEASED._replace(steepness=1e4),
    "clamped": RELEASED._replace(temperature_clamp=0.5, top_p_temperature_clamp=0.4),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_arguments(
    kind: str, rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, T, P, labels; half of the labels are likely tokens, half are any."""
    random = generator(seed)
    logits = make_rows(kind, rows, vocab, dtype, random)
    temperature = 0.05 + 1.95 * torch.rand(rows, generator=random)
    top_p = torch.rand(rows, generator=random)
    likely = torch.multinomial(logits.float().softmax(-1), 1, generator=random)[:, 0]
    anywhere = torch.randint(vocab, (rows,), generator=random)
    labels = torch.where(torch.arange(rows) % 2 == 0, likely, anywhere)
    return logits, temperature, top_p, labels


def of_each_label(row: Tensor, temperature: float, top_p: float):
    """One row as often as it has columns, each time with another label."""
    vocab = row.shape[-1]
    parameters = (torch.full((vocab,), value) for value in (temperature, top_p))
    return row.expand(vocab, vocab), *parameters, torch.arange(vocab)


def assert_identical(got: LossResults, expected: LossResults) -> None:
    for name, value in got._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name


# Values


@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients_are_exact(backend: str, kind: str, dtype: torch.dtype) -> None:
    for vocab in (1, 2, 17, 1000):
        arguments = random_arguments(kind, 6, vocab, dtype, seed=vocab)
        assert_losses_exact(*arguments, with_logits=True)


@pytest.mark.parametrize("kind", ["peaked", "gaussian", "masked"])
@pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=ALL_OPTIONS)
def test_every_option_is_exact(backend: str, options: LossOptions, kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arguments = random_arguments(kind, 6, 333, dtype, seed=1)
        assert_losses_exact(*arguments, options, with_logits=True)


@pytest.mark.parametrize("cumulative", ["inclusive", "exclusive"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_top_p_pulls_at_labels_beyond_the_cut_and_pushes_at_those_before(
    backend: str, dtype: torch.dtype, cumulative: str
) -> None:
    options = RELEASED._replace(exclusive=cumulative == "exclusive")
    row = make_rows("gaussian", 1, 40, torch.float32, generator(2)).to(dtype)
    for top_p in (0.05, 0.7, 0.99):
        got = assert_losses_exact(*of_each_label(row, 0.8, top_p), options, with_logits=True)
        order = (row[0].float() + 0.0).argsort(descending=True, stable=True)
        probs = (row[0].double() / torch.tensor(0.8).double()).softmax(-1)[order]
        mass = probs.cumsum(-1) - (probs if options.exclusive else 0)
        in_tail = mass > torch.tensor(top_p).double()
        signs = got.top_p_loss_d_top_p[order] < 0  # more top_p lowers the loss of the tail
        assert torch.equal(signs, in_tail)
        assert 0 <= int(in_tail.sum()) < 40 or not options.exclusive


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_ends_exactly_at_top_p_is_before_the_cut(
    backend: str, dtype: torch.dtype
) -> None:
    # Masses of 1/8: exact in any arithmetic, so there is no slack to hide behind.
    for vocab in (8, 1024):
        row = torch.zeros(1, vocab, dtype=dtype)
        for top_p in (0.25, 0.5, 0.875):
            got = run_losses(*of_each_label(row, 1.0, top_p))
            ends = (torch.arange(vocab) + 1) / vocab
            assert torch.equal(got.top_p_loss_d_top_p < 0, ends > top_p)
            exclusive = run_losses(
                *of_each_label(row, 1.0, top_p), RELEASED._replace(exclusive=True)
            )
            assert torch.equal(exclusive.top_p_loss_d_top_p < 0, ends - 1 / vocab > top_p)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_come_in_index_order(backend: str, dtype: torch.dtype) -> None:
    row = torch.tensor([[1.0, 2.0, -0.0, 2.0, 0.0, 1.0, -0.0]], dtype=dtype)
    got = assert_losses_exact(*of_each_label(row, 0.9, 0.3), with_logits=True)
    for tied in ([1, 3], [0, 5], [2, 4, 6]):
        losses = got.top_p_loss[tied]
        assert (losses.diff() > 0).all(), losses  # the later one has more mass before it
    for kind in ("tied", "two_valued", "flat"):
        row = make_rows(kind, 1, 60, torch.float32, generator(3)).to(dtype)
        assert_losses_exact(*of_each_label(row, 1.1, 0.6), with_logits=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_top_p_is_exact(backend: str, dtype: torch.dtype) -> None:
    extremes = [0.0, 1e-45, 1e-30, 1e-6, 0.999, 0.999999, 1 - 2**-23, 1 - 2**-24, 1.0]
    top_p = torch.tensor(extremes)
    for options in (RELEASED, RELEASED._replace(exclusive=True), MEGATRON):
        for kind in ("peaked", "flat"):
            row = make_rows(kind, 1, 500, dtype, generator(4))
            order = SortedRow(row[0]).order
            for rank in (0, 1, 60, 499):
                arguments = (row.expand(9, -1), torch.full((9,), 0.7), top_p, order[[rank] * 9])
                got = assert_losses_exact(*arguments, options, with_logits=True)
                assert got.top_p_loss_d_top_p[-1] == 0, "a top_p of 1 cuts nothing"


def test_a_top_p_around_the_largest_probability_is_exact(backend: str) -> None:
    row = torch.tensor([[3.0, 1.0, 2.0, -4.0]])
    largest = float(row.double().softmax(-1).max())
    step = torch.arange(-3, 4) * 2.0**-20
    for offset in step.tolist():
        for options in (RELEASED, RELEASED._replace(exclusive=True)):
            arguments = of_each_label(row, 1.0, largest + offset)
            assert_losses_exact(*arguments, options, with_logits=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_temperature_is_exact(backend: str, dtype: torch.dtype) -> None:
    temperature = torch.tensor(
        [0.0, 1e-45, 1e-30, 1e-9, 1e-8, 2e-8, 1e-3, 0.0099, 0.01, 0.0101, 0.05, 2, 30, 1e30]
    )
    rows = len(temperature)
    for kind in ("peaked", "gaussian", "two_valued", "flat"):
        logits, _, top_p, labels = random_arguments(kind, rows, 200, dtype, seed=5)
        assert_losses_exact(logits, temperature, top_p, labels, with_logits=True)
        close = (logits.float() * 2**-18).to(dtype)  # so that small temperatures tell them apart
        assert_losses_exact(close, temperature, top_p, labels, with_logits=True)
        assert_losses_exact(
            close[1:], temperature[1:], top_p[1:], labels[1:], MEGATRON, with_logits=True
        )


def test_a_clamped_temperature_has_no_gradient_and_one_at_the_clamp_has(backend: str) -> None:
    logits = 0.01 * make_rows("gaussian", 1, 30, torch.float32, generator(6)).expand(3, -1)
    temperature = torch.tensor([0.0099, 0.01, 0.0101])
    top_p, labels = torch.full((3,), 0.5), torch.full((3,), 4)
    got = run_losses(logits, temperature, top_p, labels)
    assert (got.temperature_loss_d_temperature != 0).tolist() == [False, True, True]
    assert (got.top_p_loss_d_temperature != 0).all()
    assert got.temperature_loss[0] == got.temperature_loss[1]
    assert got.top_p_loss[0] != got.top_p_loss[1]
    clamped = run_losses(
        logits, temperature, top_p, labels, RELEASED._replace(top_p_temperature_clamp=0.01)
    )
    assert (clamped.top_p_loss_d_temperature != 0).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_far_apart_give_no_nan(backend: str, dtype: torch.dtype) -> None:
    largest = 1e4 if dtype == torch.float16 else 1e30
    row = torch.tensor([[largest, -largest, 0.0, -INF, largest * 0.999]], dtype=dtype)
    for temperature in (1e-30, 0.01, 2.0):
        for options in (RELEASED, MEGATRON):
            for top_p in (0.0, 0.5, 1.0):
                arguments = of_each_label(row, temperature, top_p)
                got = assert_losses_exact(*arguments, options, with_logits=True)
                assert not any(value.isnan().any() for value in got)


# Masked tokens


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_tokens_are_as_if_they_were_not_there(backend: str, dtype: torch.dtype) -> None:
    logits, temperature, top_p, _ = random_arguments("gaussian", 5, 99, dtype, seed=7)
    hidden = torch.rand(99, generator=generator(8)) < 0.5
    labels = (~hidden).nonzero()[:5, 0]
    masked = logits.masked_fill(hidden, -INF)
    got = assert_losses_exact(masked, temperature, top_p, labels, with_logits=True)
    without = logits[:, ~hidden].clone()
    places = hidden.logical_not().cumsum(0)[labels] - 1
    assert_losses_exact(without, temperature, top_p, places, with_logits=True)
    for gradient in (got.temperature_loss_d_logits, got.top_p_loss_d_logits):
        assert (gradient[:, hidden] == 0).all()
        assert (gradient[:, ~hidden] != 0).any()


def test_a_masked_label_costs_nothing(backend: str) -> None:
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, -INF, 1.0]])
    labels, half = torch.tensor([1, 2]), torch.full((2,), 0.5)
    for options in (RELEASED, MEGATRON, RELEASED._replace(probability_eps=0.0)):
        got = run_losses(logits, half, half, labels, options, with_logits=True)
        for value in got:
            assert (value[0] == 0).all()
            assert (value[1] != 0).any()


# What counts


def test_ignored_rows_are_not_read(backend: str) -> None:
    logits, temperature, top_p, labels = random_arguments("peaked", 6, 100, seed=9)
    ignored = torch.arange(6) % 3 == 1
    spoiled = [logits.clone(), temperature.clone(), top_p.clone()]
    for tensor in spoiled:
        tensor[ignored] = NAN
    for index in (IGNORE, 3):
        assert (labels[~ignored] != 3).all()
        got = run_losses(
            *spoiled, labels.masked_fill(ignored, index), with_logits=True, ignore_index=index
        )
        expected = run_losses(
            logits[~ignored],
            temperature[~ignored],
            top_p[~ignored],
            labels[~ignored],
            with_logits=True,
        )
        for value, wanted in zip(got, expected, strict=True):
            assert (value[ignored] == 0).all()
            assert torch.equal(value[~ignored], wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("nothing", ["ignored", "dropped", "empty"])
def test_nothing_to_count_is_a_differentiable_zero(
    backend: str, nothing: str, reduction: str
) -> None:
    rows = 0 if nothing == "empty" else 3
    logits = torch.arange(8.0).repeat(rows, 1).requires_grad_()
    temperature = torch.ones(rows, requires_grad=True)
    top_p = torch.full((rows,), 0.5, requires_grad=True)
    labels = torch.full((rows,), IGNORE if nothing == "ignored" else 7)
    drop = torch.zeros(rows) if nothing == "dropped" else None
    losses = autodeco_ext.autodeco_loss(
        logits,
        temperature,
        top_p,
        labels,
        drop_uniform=drop,
        variant="megatron",
        reduction=reduction,
    )
    for value in losses:
        assert value.shape == ((rows,) if reduction == "none" else ())
        assert (value == 0).all()
        gradients = torch.autograd.grad(
            value.sum(), (logits, temperature, top_p), retain_graph=True, materialize_grads=True
        )
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("options", [RELEASED, MEGATRON], ids=["released", "megatron"])
def test_easy_tokens_are_dropped_below_the_threshold_only(
    backend: str, options: LossOptions
) -> None:
    # The argmax is token 1, the lower of two equal ones.
    logits = torch.tensor([0.5, 2.0, 2.0, -1.0]).expand(6, -1)
    labels = torch.tensor([1, 1, 1, 2, 0, 1])
    drop = torch.tensor([0.0, 0.69999, 0.7, 0.0, 0.0, 0.99])
    half = torch.full((6,), 0.5)
    got = assert_losses_exact(
        logits, half, half, labels, options, drop_uniform=drop, easy_token_drop=0.7
    )
    dropped = torch.tensor([True, True, False, False, False, False])
    assert torch.equal(got.temperature_loss == 0, dropped)
    assert torch.equal(got.top_p_loss == 0, dropped & options.megatron)


def test_drop_uniform_is_drawn_from_the_torch_generator() -> None:
    logits = torch.tensor([0.0, 3.0]).expand(4000, -1)
    one, labels = torch.ones(4000), torch.ones(4000, dtype=torch.int64)

    def losses(**named) -> Tensor:
        arguments = (logits, one, one, labels)
        return autodeco_ext.autodeco_loss(*arguments, reduction="none", **named).temperature_loss

    torch.manual_seed(1)
    first = losses()
    torch.manual_seed(1)
    assert torch.equal(losses(), first)
    assert not torch.equal(losses(), first)
    assert (first == 0).double().mean() == pytest.approx(0.6, abs=0.04)
    before = torch.get_rng_state()
    assert (losses(easy_token_drop=0.0) > 0).all()
    assert torch.equal(torch.get_rng_state(), before)


# Reductions, shapes, layouts


@pytest.mark.parametrize("options", [RELEASED, MEGATRON], ids=["released", "megatron"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_are_those_of_the_reference(
    backend: str, reduction: str, options: LossOptions
) -> None:
    logits, temperature, top_p, labels = random_arguments("peaked", 24, 30, seed=10)
    labels[::5] = IGNORE
    shaped = [x.view(2, 12, *x.shape[1:]) for x in (logits, temperature, top_p, labels)]
    drop = torch.linspace(0, 1, 24).view(2, 12)
    named = {"drop_uniform": drop, "reduction": reduction, **keywords(options)}
    of_op, of_reference = (
        [x.to(dtype).clone().requires_grad_() for x in shaped[:3]]
        for dtype in (torch.float32, torch.float64)
    )
    got = autodeco_ext.autodeco_loss(*of_op, shaped[3], **named)
    expected = reference.autodeco_loss(*of_reference, shaped[3], **named)
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-9)
    # An outside weighting of the tokens reaches each of them.
    weights = torch.rand(got.loss.shape, generator=generator(11))
    (got.loss * weights).sum().backward()
    (expected.loss * weights).sum().backward()
    for leaf, wanted in zip(of_op, of_reference, strict=True):
        assert leaf.grad.shape == leaf.shape
        largest = wanted.grad.abs().max()
        torch.testing.assert_close(leaf.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6 * largest)


def test_the_parts_sum_to_the_loss(backend: str) -> None:
    arguments = random_arguments("gaussian", 20, 50, seed=12)
    losses = autodeco_ext.autodeco_loss(*arguments, drop_uniform=torch.linspace(0, 1, 20))
    assert losses.loss == losses.temperature_loss + losses.top_p_loss
    alone = autodeco_ext.soft_top_p_loss(*arguments)
    assert torch.equal(alone, losses.top_p_loss)


def test_soft_top_p_loss_alone_has_the_gradients_of_that_part(backend: str) -> None:
    logits, *parameters, labels = random_arguments("gaussian", 20, 50, seed=13)
    gradients = []
    for op in (
        autodeco_ext.soft_top_p_loss,
        lambda *x: autodeco_ext.autodeco_loss(*x, easy_token_drop=0.0).top_p_loss,
    ):
        leaves = [x.clone().requires_grad_() for x in (logits, *parameters)]
        op(*leaves, labels).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for alone, part in zip(*gradients, strict=True):
        assert torch.equal(alone, part)


def test_a_single_row_needs_no_batch(backend: str) -> None:
    logits, temperature, top_p, labels = random_arguments("gaussian", 1, 50, seed=14)
    arguments = (logits[0], temperature[0], top_p[0], labels[0])
    loss = autodeco_ext.soft_top_p_loss(*arguments, reduction="none")
    assert loss.shape == ()
    batched = autodeco_ext.soft_top_p_loss(logits, temperature, top_p, labels, reduction="none")
    assert torch.equal(loss, batched[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtypes_of_what_they_belong_to(backend: str, dtype: torch.dtype) -> None:
    got = run_losses(*random_arguments("gaussian", 4, 50, dtype), with_logits=True)
    assert got.top_p_loss_d_logits.dtype == dtype
    assert {value.dtype for value in got[:5]} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [17, 1000, 20_000])
def test_rows_do_not_affect_each_other(backend: str, dtype: torch.dtype, vocab: int) -> None:
    arguments = random_arguments("peaked", 7, vocab, dtype, seed=15)
    together = run_losses(*arguments, with_logits=True)
    turned = run_losses(*(x.roll(3, 0) for x in arguments), with_logits=True)
    assert_identical(turned, LossResults(*(x.roll(3, 0) for x in together)))
    for i in range(7):
        alone = run_losses(*(x[i : i + 1].clone() for x in arguments), with_logits=True)
        assert_identical(alone, LossResults(*(x[i : i + 1] for x in together)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_alignment_do_not_matter(backend: str, dtype: torch.dtype) -> None:
    logits, *others = random_arguments("gaussian", 6, 1003, dtype, seed=16)
    expected = run_losses(logits, *others, with_logits=True)
    for left in (1, 3, 8):
        around = torch.full((6, 1003 + 20), NAN, dtype=dtype)
        around[:, left : left + 1003] = logits
        assert_identical(
            run_losses(around[:, left : left + 1003], *others, with_logits=True), expected
        )
    between = torch.full((12, 1003), NAN, dtype=dtype)
    between[::2] = logits
    assert_identical(run_losses(between[::2], *others, with_logits=True), expected)
    one = logits[:1].expand(6, -1)  # one row read six times
    got = run_losses(one, *others, with_logits=True)
    assert_identical(got, run_losses(one.clone(), *others, with_logits=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_matter(cpu_backend: str, dtype: torch.dtype) -> None:
    arguments = random_arguments("peaked", 33, 4000, dtype, seed=17)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(run_losses(*arguments, with_logits=True))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert_identical(other, results[0])


def test_the_same_row_has_the_same_losses_in_every_dtype_it_fits(backend: str) -> None:
    logits, *others = random_arguments("tied", 6, 500, torch.bfloat16, seed=18)
    for dtype in DTYPES:
        assert torch.equal(logits.to(dtype).float(), logits.float())
        assert_losses_exact(logits.to(dtype), *others, with_logits=True)


def test_a_small_steepness_is_the_cross_entropy_and_a_large_one_the_hard_cut(backend: str) -> None:
    row = make_rows("gaussian", 1, 40, torch.float32, generator(19))
    arguments = of_each_label(row, 0.8, 0.7)
    none = LossOptions(steepness=0.0, mass_eps=0.0, probability_eps=0.0)
    got = assert_losses_exact(*arguments, none, with_logits=True)
    torch.testing.assert_close(got.top_p_loss, got.temperature_loss)
    assert (got.top_p_loss_d_top_p == 0).all()
    hard = run_losses(*arguments, RELEASED._replace(steepness=1e9, exclusive=True))
    kept = autodeco_ext.filter_logits(row, 0.8, 0.7)[0]
    weight = row[0].softmax(-1)
    expected = weight * -kept.log_softmax(-1)
    torch.testing.assert_close(hard.top_p_loss[kept > -INF], expected[kept > -INF])
    exact = exact_soft_top_p_loss(SortedRow(row[0]), 0.8, 0.7, int((kept == -INF).nonzero()[0]))
    assert exact.loss < hard.top_p_loss[kept == -INF].max()


# Inside torch


def test_double_backward_says_that_there_is_none(backend: str) -> None:
    logits, temperature, top_p, labels = random_arguments("gaussian", 3, 20, seed=20)
    temperature.requires_grad_()
    loss = autodeco_ext.soft_top_p_loss(logits, temperature, top_p, labels)
    (gradient,) = torch.autograd.grad(loss, temperature, create_graph=True)
    with pytest.raises(RuntimeError, match=r"autodeco_ext.*second derivative"):
        gradient.sum().backward()


def test_without_gradients_nothing_is_recorded(backend: str) -> None:
    arguments = random_arguments("gaussian", 3, 20, seed=21)
    leaves = [x.clone().requires_grad_() for x in arguments[:3]]
    with torch.no_grad():
        loss = autodeco_ext.soft_top_p_loss(*leaves, arguments[3])
    assert not loss.requires_grad
    with torch.inference_mode():
        assert torch.equal(autodeco_ext.soft_top_p_loss(*arguments), loss)
    leaves[1].requires_grad_(False)
    autodeco_ext.soft_top_p_loss(*leaves, arguments[3]).backward()
    assert leaves[1].grad is None and leaves[0].grad is not None and leaves[2].grad is not None
