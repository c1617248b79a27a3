"""linear_autodeco_loss on two ranks: an LM head whose every call waits, heads that are sharded."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from linear_loss_case import GRADIENT, LOSS, Case, assert_all_close, module_of
from tiny_models import tiny_autodeco
from torch import Tensor, nn

RANKS = 2


class WaitingHead(nn.Linear):
    """As ZeRO-3: every call meets the other rank, and parameters carry ds_id."""

    def forward(self, hidden: Tensor) -> Tensor:
        dist.barrier()
        return super().forward(hidden)


def zero_3(head: nn.Linear) -> nn.Module:
    waiting = WaitingHead(head.in_features, head.out_features, bias=False)
    waiting.weight = head.weight
    waiting.weight.ds_id = 0
    return waiting


def fsdp_2(head: nn.Linear) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    return fully_shard(head, mesh=mesh, reshard_after_forward=True)


def fsdp_1(module: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def run_in_group(rank: int, store: Path, run: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=120),
    )
    try:
        run(rank, *arguments)
    finally:
        dist.destroy_process_group()
    # Gloo's threads outlive the group that sharded modules still refer to. One that lets go of a
    # tensor while the interpreter is taken down aborts the process (pytorch/pytorch#190489).
    os._exit(0)


def on_every_rank(tmp_path: Path, run: Callable[..., None], *arguments: object) -> None:
    torch.multiprocessing.spawn(run_in_group, (tmp_path / "store", run, *arguments), nprocs=RANKS)


def run_rank(rank: int, shard: Callable[[nn.Linear], nn.Module]) -> None:
    case = Case()
    lm_head = shard(module_of(case))
    for labelled in ((9, 0), (1, 7), (0, 0), (4, 4)):  # of each rank
        case.labels[:] = torch.where(torch.arange(14).view(2, 7) < labelled[rank], 5, -100)
        expected, got = case.loss().loss, case.loss(lm_head, chunk_size=2).loss
        torch.testing.assert_close(got, expected, **LOSS)
        assert_all_close(case.gradients(got), case.gradients(expected), **GRADIENT)
    with pytest.raises(ValueError, match="lm_head must have whole parameters with train_base"):
        case.loss(lm_head, train_base=True)


def run_rank_with_sharded_heads(rank: int) -> None:
    for shard in (fsdp_1, fsdp_2):
        whole, apart = Case(), Case()
        shard(whole.heads)
        apart.heads.temp_head = shard(apart.heads.temp_head)
        for case in (whole, apart):
            with pytest.raises(ValueError, match="heads must have whole parameters"):
                case.loss()


def backward(model: nn.Module) -> nn.Module:
    """On every rank the same labels, so that their mean is that of one rank."""
    torch.manual_seed(11)  # easy-token drop
    ids = torch.tensor([[1, 7, 20, 33, 2], [4, 4, 2, 50, 9]])
    model(ids, labels=ids).loss.backward()
    return model


def head_gradients(model: nn.Module) -> list[Tensor]:
    return [one.grad for name, one in model.named_parameters() if "heads." in name]


def run_rank_with_a_sharded_model(rank: int) -> None:
    models = [tiny_autodeco() for _ in range(3)]
    for model in models:
        model.requires_grad_(False).train().heads.requires_grad_(True)
    expected = head_gradients(backward(models[0]))
    sharded = head_gradients(backward(fsdp_2(models[1])))
    assert_all_close([grad.full_tensor() for grad in sharded], expected, **GRADIENT)
    wrapped = backward(fsdp_1(models[2]))
    with type(wrapped).summon_full_params(wrapped, with_grads=True):
        assert_all_close(head_gradients(wrapped), expected, **GRADIENT)


two_ranks = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


@pytest.mark.slow
@two_ranks
@pytest.mark.parametrize("run", [run_rank_with_sharded_heads, run_rank_with_a_sharded_model])
def test_sharded_heads_train_in_a_sharded_model_and_are_refused_alone(
    tmp_path: Path, run: Callable[[int], None]
) -> None:
    on_every_rank(tmp_path, run)


@pytest.mark.slow
@two_ranks
@pytest.mark.parametrize("shard", [fsdp_2, zero_3])
def test_ranks_with_different_numbers_of_labels_do_not_wait_for_ever(
    tmp_path: Path, shard: Callable[[nn.Linear], nn.Module]
) -> None:
    on_every_rank(tmp_path, run_rank, shard)
