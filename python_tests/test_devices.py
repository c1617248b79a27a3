"""What runs the tests' CPU tensors through another device, proved with the CPU as that device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from devices import OpsOnDevice
from loss_judge import of_each_label, random_arguments, run_losses
from torch import Tensor

import autodeco_ext

ON_CPU = OpsOnDevice("cpu")
BASE = torch.randn(12, 130, generator=torch.Generator().manual_seed(1))
VIEWS = [
    BASE,
    BASE[:, 3:100],
    BASE[2::3, 1:],
    BASE[:1].expand(5, -1),
    BASE.view(3, 4, 130).transpose(0, 1),
    BASE.bfloat16()[1:, 7:],
    torch.arange(20)[3::2],
    torch.zeros(0, 5),
    torch.tensor(4.5),
]


def run(function: Callable, *arguments: object, **named: object) -> object:
    return ON_CPU.wrap(function)(*arguments, **named)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: f"{list(view.shape)}")
def test_a_view_keeps_its_values_layout_and_alignment_in_other_memory(view: Tensor) -> None:
    def look(moved: Tensor) -> None:
        assert torch.equal(moved, view)
        assert moved.dtype == view.dtype and moved.stride() == view.stride()
        assert moved.data_ptr() % 64 == view.data_ptr() % 64
        assert moved.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()

    run(look, view)


def test_tensors_that_share_memory_still_do() -> None:
    def look(first: Tensor, *, out: Tensor, other: Tensor) -> None:
        assert first.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        assert out.data_ptr() - first.data_ptr() == BASE[1:].data_ptr() - BASE.data_ptr()
        assert other.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()

    run(look, BASE, out=BASE[1:], other=BASE.clone())


def test_what_is_written_is_brought_back_with_what_lies_beside_it() -> None:
    def fill(*, out: Tensor) -> Tensor:
        out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(7)
        return out.fill_(1)

    around = torch.zeros(4, 10)
    out = around[1:3, 2:5]
    assert run(fill, out=out) is out
    assert (out == 1).all()
    assert around[1, 1] == 7 and around.count_nonzero() == 7


@pytest.mark.parametrize("where", [-1, 40])
def test_writing_outside_a_storage_is_noticed_and_reading_there_gives_nan(where: int) -> None:
    def at(tensor: Tensor) -> Tensor:
        return tensor.as_strided((1,), (1,), tensor.storage_offset() + where)

    assert run(at, torch.zeros(4, 10)).isnan()
    with pytest.raises(AssertionError, match="wrote outside the memory it was given"):
        run(lambda tensor: at(tensor).zero_(), torch.zeros(4, 10))


class Pair(NamedTuple):
    tensor: Tensor
    nested: tuple | None


def test_modules_move_and_results_of_any_shape_come_back() -> None:
    layer = torch.nn.Linear(130, 2)

    def look(module: torch.nn.Module, x: Tensor, number: int, elsewhere: Tensor) -> Pair:
        assert module is not layer
        assert (number, elsewhere.device.type) == (3, "meta")
        return Pair(module(x), Pair(x.argmax(-1), None))

    got = run(look, layer, BASE, 3, torch.zeros(2, device="meta"))
    assert torch.equal(got.tensor, layer(BASE))
    assert torch.equal(got.nested.tensor, BASE.argmax(-1)) and got.nested.nested is None


def test_gradients_are_still_asked_for() -> None:
    def look(x: Tensor) -> None:
        assert x.requires_grad

    run(look, torch.zeros(2, requires_grad=True))


def test_the_losses_have_all_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the logits too, of rows that share their memory too."""
    row = torch.linspace(-3, 3, 7)
    for given in (random_arguments("gaussian", 4, 130), of_each_label(row, 0.9, 0.6)):
        with monkeypatch.context() as patch:
            expected = run_losses(*given, with_logits=True)
            patch.setattr(autodeco_ext, "autodeco_loss", ON_CPU.wrap(autodeco_ext.autodeco_loss))
            got = run_losses(*given, with_logits=True)
        assert got.top_p_loss_d_logits is not None
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_ops_give_what_they_give_without_it() -> None:
    cube = BASE.view(3, 4, 130)
    view = cube[:, 1:, 5:101]
    temperature, seed = torch.linspace(0, 2, 3)[1], torch.arange(9).view(3, 3)
    named = {"temperature": temperature, "seed": seed, "valid_vocab": 90}
    expected = autodeco_ext.sample(view, **named, return_info=True)
    got = run(autodeco_ext.sample, view, **named, return_info=True)
    assert isinstance(got, autodeco_ext.SampleOutput)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    expected = autodeco_ext.filter_logits(view, 0.7, 0.9)
    assert torch.equal(run(autodeco_ext.filter_logits, view, 0.7, 0.9), expected)
    in_place = BASE.clone().view(3, 4, 130)[:, 1:, 5:101]
    assert run(autodeco_ext.filter_logits, in_place, 0.7, 0.9, out=in_place) is in_place
    assert torch.equal(in_place, expected)
    stats = run(autodeco_ext.distribution_stats, view, temperature)
    assert torch.equal(stats, autodeco_ext.distribution_stats(view, temperature))


def test_invalid_rows_are_an_error_unless_the_test_says_otherwise() -> None:
    def sample(logits: Tensor, *, check: bool | None = None) -> bool | None:
        return check

    assert run(sample, BASE) is True
    assert run(sample, BASE, check=False) is False
