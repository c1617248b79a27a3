"""linear_autodeco_loss with an LM head whose every call waits for the other rank."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from linear_loss_case import GRADIENT, LOSS, Case, assert_all_close, module_of
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


def run_rank(rank: int, store: Path, shard: Callable[[nn.Linear], nn.Module]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=120),
    )
    try:
        case = Case()
        lm_head = shard(module_of(case))
        for labelled in ((9, 0), (1, 7), (0, 0), (4, 4)):  # of each rank
            case.labels[:] = torch.where(torch.arange(14).view(2, 7) < labelled[rank], 5, -100)
            expected, got = case.loss().loss, case.loss(lm_head, chunk_size=2).loss
            torch.testing.assert_close(got, expected, **LOSS)
            assert_all_close(case.gradients(got), case.gradients(expected), **GRADIENT)
        with pytest.raises(ValueError, match="lm_head must have whole parameters with train_base"):
            case.loss(lm_head, train_base=True)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("shard", [fsdp_2, zero_3])
def test_ranks_with_different_numbers_of_labels_do_not_wait_for_ever(
    tmp_path: Path, shard: Callable[[nn.Linear], nn.Module]
) -> None:
    torch.multiprocessing.spawn(run_rank, (tmp_path / "store", shard), nprocs=RANKS)
