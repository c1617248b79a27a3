"""linear_autodeco_loss: from the LM head's input to the loss without the logits of all positions.

_linear_loss_autograd.py has the chunks and the gradients, _lm_head.py the LM head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autodeco_ext._arguments import (
    checks_rows,
    integer,
    item_count,
    require_bool,
    require_tensor,
    row_values,
)
from autodeco_ext._linear_loss_autograd import LinearLoss, LinearLossJob, heads_bytes
from autodeco_ext._lm_head import LMHead, LogitsTransform
from autodeco_ext._loss_autograd import reduced
from autodeco_ext.losses import easy_token_uniform, loss_options, require_reduction
from autodeco_ext.reference import AutoDecoLoss

if TYPE_CHECKING:  # at run time it would import transformers, which takes seconds
    from autodeco_ext.models import AutoDecoHeads

_OP = "linear_autodeco_loss"

# 55 rows of 151,936 float32 logits: enough for a CPU's matrix product, and half of what the whole
# call is meant to hold. A GPU, and train_base, want more.
DEFAULT_CHUNK_BYTES = 32 << 20


@torch.compiler.disable(reason="the number of positions with a label is known at run time only")
def linear_autodeco_loss(
    hidden_states: Tensor,
    lm_head: Tensor | nn.Module,
    heads: AutoDecoHeads,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logits_transform: LogitsTransform | None = None,
    train_base: bool = False,
    chunk_size: int | str = "auto",
    max_chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    drop_uniform: Tensor | None = None,
    variant: str = "released",
    cumulative: str = "inclusive",
    easy_token_drop: float = 0.6,
    steepness: float = 30.0,
    temperature_clamp: float | None = None,
    top_p_temperature_clamp: float | None = None,
    mass_eps: float = 1e-9,
    probability_eps: float = 1e-9,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items_in_batch: float | Tensor | None = None,
    check: bool | None = None,
) -> AutoDecoLoss:
    """`autodeco_loss` of the heads' T and P, from hidden states; logits exist a chunk at a time.

    logits = logits_transform(lm_head(hidden_states)), T and P = heads(hidden_states, logits), loss
    = autodeco_loss(logits, T, P, labels). Positions without a label are left out of all of it.

    The base is frozen by default: hidden states and LM head are constants, the LM head is
    multiplied once, and backward runs the heads again, not the LM head. Kept until then are 40
    bytes a position with a label, 46 with train_base, 8 more with reduction "none"; and hidden
    states, weights and (train_base) labels by reference. Labels that are no contiguous int64
    tensor are then a copy, 8 bytes for every position.

    Args:
        hidden_states: `[..., H]`, the LM head's input, in the dtype it takes. Made under no_grad,
            not under inference_mode: torch keeps no inference tensor for a backward, and says so.
        lm_head: its weight `[V, H]`, or the module, which is called with `[rows, H]`. Weights that
            are sharded (DTensor parameters, as FSDP2 makes them; ZeRO-3) gather themselves in each
            call, which waits for the other ranks: every rank must then call this function. A rank
            with fewer chunks than another calls the module with a row of zeros for each it lacks;
            their number is agreed on first and read on the host. Where a rank raises, the others
            wait for it: unshard the module first where that matters, or to gather once.
        heads: AutoDecoHeads of that hidden size, with whole parameters: under FSDP, wrap the model
            that owns them (FSDP1 with use_orig_params) and call this inside its forward. Without a
            top-p head there is no top-p loss, and T is trained alone. Gradients are as released:
            the features and the T that enters the top-p head are constants.
        labels: `[...]` integers in 0 .. V-1, or ignore_index. labels[i] is the target of row i.
        bias: `[V]`, of an LM head given as a weight.
        logits_transform: what the base does to the LM head's output (soft cap, scale, fewer
            columns), called with `[rows, V]`, which it may change in place and which the next chunk
            is written over. It must treat every row alone.
        train_base: let gradients flow into hidden_states and lm_head where they require grad.
            Backward then multiplies the LM head again, and every chunk makes a gradient of the LM
            head's size, summed in float32: use large chunks. A module's parameters must be whole:
            unshard it first. LM head and logits_transform must give the same result twice: dropout
            in them, or a transform that counts its calls, makes the gradient one of other logits.
        chunk_size: rows of a chunk at most, >= 1; "auto": as many as max_chunk_bytes holds.
        max_chunk_bytes: for what exists of a chunk at a time: its logits (three times with a
            logits_transform, twice as many with train_base) and the heads' layers. A chunk has one
            row at least. Backward of a frozen base, whose chunks have no logits, takes 16 MiB of
            it at most.
        drop_uniform, variant, cumulative, easy_token_drop, steepness, temperature_clamp,
            top_p_temperature_clamp, mass_eps, probability_eps, ignore_index, reduction: as in
            `autodeco_loss`.
        num_items_in_batch: with reduction "mean", divide both parts by this and not by the number
            of positions they count: under gradient accumulation and data parallelism the number
            of all of them together. A number >= 0 or a tensor of one element, whose value is not
            checked. Less than 1 counts as 1.
        check: as in `autodeco_loss`. On the CPU, False leaves a row whose logits or T a head cannot
            read statistics of an error; where no head reads them (no top-p head, or one without
            enhanced features), such a row has the loss NaN as well.

    Returns:
        AutoDecoLoss(loss, temperature_loss, top_p_loss), float32.

    Raises:
        ValueError: a shape, device or value that does not fit, or an invalid row, numbered as in
            `labels.flatten()`. Rows are looked at chunk by chunk; on the CPU, where a head reads
            statistics, the logits and T of a chunk's rows come before its labels.
        TypeError: an argument of the wrong type.
        RuntimeError: a second derivative.

    torch.compile breaks the graph here and runs the call as it is: how many positions have a label,
    and so how many chunks there are, is known at run time only. fullgraph=True therefore raises
    with that reason. On CUDA that number is read on the host, once.

    It may run inside torch.utils.checkpoint, reentrant or not. Under DistributedDataParallel call
    it inside the wrapped module's forward: of a call outside of it DDP exchanges no gradients, and
    does not say so.

    Determinism: as `autodeco_loss`, given the products with LM head and heads, which are torch's
    and may depend on the chunk by rounding. The tests allow other chunks to change a loss or a
    gradient of the heads or of a float32 base by 2e-5 of its norm, the gradients of a bfloat16 base
    by 4e-3, of a float16 base by 1e-3 (small shapes; a long sum may round by more).

    Example:
        >>> import torch, autodeco_ext
        >>> from autodeco_ext import AutoDecoConfig, AutoDecoHeads
        >>> heads, lm_head = AutoDecoHeads(AutoDecoConfig(hidden_size=8)), torch.nn.Linear(8, 100)
        >>> labels = torch.tensor([[3, 7, -100]])
        >>> loss = autodeco_ext.linear_autodeco_loss(torch.randn(1, 3, 8), lm_head, heads, labels)
        >>> loss.loss.backward()
    """
    options = loss_options(
        _OP,
        variant=variant,
        cumulative=cumulative,
        easy_token_drop=easy_token_drop,
        steepness=steepness,
        temperature_clamp=temperature_clamp,
        top_p_temperature_clamp=top_p_temperature_clamp,
        mass_eps=mass_eps,
        probability_eps=probability_eps,
        ignore_index=ignore_index,
    )
    require_reduction(_OP, reduction)
    require_bool(_OP, "train_base", train_base)
    if num_items_in_batch is not None and reduction != "mean":
        raise ValueError(
            f"autodeco_ext.{_OP}: reduction must be 'mean' with num_items_in_batch, got"
            f" {reduction!r}"
        )
    _check_hidden_states(hidden_states, heads)
    shape, device = hidden_states.shape[:-1], hidden_states.device
    items = None if num_items_in_batch is None else item_count(_OP, num_items_in_batch, device)
    head = LMHead(_OP, lm_head, bias, logits_transform, hidden_states)
    if train_base and head.is_sharded:
        raise ValueError(
            f"autodeco_ext.{_OP}: lm_head must have whole parameters with train_base, got sharded"
            " ones"
        )
    job = LinearLossJob(
        op=_OP,
        heads=heads,
        head_parameters=[one for one in heads.parameters() if one.requires_grad],
        lm_head=head,
        train_base=train_base,
        options=options,
        chunk_size=_chunk_size(chunk_size, max_chunk_bytes, head, heads, hidden_states, train_base),
        max_chunk_bytes=int(max_chunk_bytes),
        check=checks_rows(_OP, check, hidden_states),
    )
    labels = row_values(_OP, "labels", labels, torch.int64, shape, device)
    if not shape:
        hidden_states = hidden_states.unsqueeze(0)  # rows are taken along a dimension
    uniform = easy_token_uniform(_OP, drop_uniform, labels, options)
    labels = labels.flatten()
    rows = (labels != ignore_index).nonzero()[:, 0]
    losses, counted = LinearLoss.apply(
        job,
        rows,
        labels,
        None if uniform is None else uniform.flatten(),
        hidden_states if train_base else hidden_states.detach(),
        *job.trained,
    )
    if reduction == "none":
        losses = losses.new_zeros(2, len(labels)).index_copy(1, rows, losses).reshape(2, *shape)
    if items is None:
        return losses_of_heads(heads, reduced(losses, counted, reduction))
    sums = losses_of_heads(heads, reduced(losses, counted, "sum"))
    return AutoDecoLoss(*(part / items for part in sums))


def losses_of_heads(heads: AutoDecoHeads, losses: AutoDecoLoss) -> AutoDecoLoss:
    """Without a top-p head there is no top-p loss: at P = 1 it is the cross entropy once more."""
    if heads.top_p_head is not None:
        return losses
    of_temperature = losses.temperature_loss
    return AutoDecoLoss(of_temperature.clone(), of_temperature, torch.zeros_like(of_temperature))


def _check_hidden_states(hidden_states: Tensor, heads: AutoDecoHeads) -> None:
    from autodeco_ext.models.heads import require_heads  # whoever has heads has imported this

    require_tensor(_OP, "hidden_states", hidden_states)
    require_heads(_OP, heads)
    if not hidden_states.is_floating_point():
        raise TypeError(
            f"autodeco_ext.{_OP}: hidden_states must be floating point, got {hidden_states.dtype}"
        )
    shape = list(hidden_states.shape)
    if not shape or shape[-1] != heads.hidden_size:
        raise ValueError(
            f"autodeco_ext.{_OP}: hidden_states must have shape [..., {heads.hidden_size}] (the"
            f" heads' hidden_size), got {shape}"
        )
    if not _are_whole(heads):
        raise ValueError(
            f"autodeco_ext.{_OP}: heads must have whole parameters (wrap the model that owns them,"
            " not the heads; FSDP1 with use_orig_params=True), got sharded ones"
        )
    for parameter in heads.parameters():
        if parameter.device != hidden_states.device:
            raise ValueError(
                f"autodeco_ext.{_OP}: heads must be on {hidden_states.device} like the hidden"
                f" states, got {parameter.device}"
            )


def _are_whole(heads: AutoDecoHeads) -> bool:
    """Whether the heads' parameters are theirs, in full.

    Backward computes the layers again, where no wrapper gathers them. FSDP1 takes a layer's
    parameters away or leaves a flat part of them, which would get no gradient; those of FSDP2 know
    their mesh, those of ZeRO-3 are empty.
    """
    for layer in heads.modules():
        if type(layer) is nn.Linear:
            weight = layer._parameters.get("weight")
            if weight is None or weight.shape != (layer.out_features, layer.in_features):
                return False
    return not any(hasattr(one, "device_mesh") for one in heads.parameters())


def _chunk_size(
    chunk_size: int | str,
    max_chunk_bytes: int,
    head: LMHead,
    heads: AutoDecoHeads,
    hidden_states: Tensor,
    train_base: bool,
) -> int:
    for name, value in (("max_chunk_bytes", max_chunk_bytes), ("chunk_size", chunk_size)):
        if name == "chunk_size" and value == "auto":
            continue
        kind = "an integer" if name == "max_chunk_bytes" else "an integer or 'auto'"
        if integer(_OP, name, value, kind) < 1:
            raise ValueError(f"autodeco_ext.{_OP}: {name} must be >= 1, got {value}")
    if chunk_size != "auto":
        return int(chunk_size)
    copies = (1 if head.transform is None else 3) * (2 if train_base else 1)
    logits_bytes = copies * head.vocab * hidden_states.element_size()
    return max(1, max_chunk_bytes // (logits_bytes + heads_bytes(heads)))
