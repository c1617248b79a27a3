"""The chunk loops of linear_autodeco_loss, forward and backward, as one autograd function.

Kept of a position are its index, T, its four features and three gradients: with a frozen base,
backward computes the two small heads again and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autodeco_ext._arguments import call, errors_named
from autodeco_ext._lm_head import LMHead
from autodeco_ext._loss_autograd import LossOptions, first_derivative
from autodeco_ext.ops import distribution_stats

if TYPE_CHECKING:  # at run time it would import transformers, which takes seconds
    from autodeco_ext.models import AutoDecoHeads

_ops = torch.ops.autodeco_ext
_PREDICTED = ("temperature", "top_p")

_MOST_BACKWARD_BYTES = 16 << 20


@dataclass(frozen=True)
class LinearLossJob:
    """What forward and backward of one call need besides the tensors of its positions."""

    op: str
    heads: AutoDecoHeads
    head_parameters: list[Tensor]  # those that require grad
    lm_head: LMHead
    train_base: bool
    options: LossOptions
    chunk_size: int
    max_chunk_bytes: int
    check: bool

    @property
    def trained(self) -> list[Tensor]:
        return [*self.head_parameters, *(self.lm_head.parameters if self.train_base else ())]

    def backward_chunk_size(self) -> int:
        """Without the LM head's logits a chunk has room for more rows."""
        if self.train_base:
            return self.chunk_size
        return max(1, min(self.max_chunk_bytes, _MOST_BACKWARD_BYTES) // heads_bytes(self.heads))


def heads_bytes(heads: AutoDecoHeads) -> int:
    """Roughly what both heads take for a row, backward included."""
    layers = sum(one.shape[0] for one in heads.parameters() if one.dim() == 2)
    # The hidden state and the copy that the features are appended to; the sums and activations of
    # every layer, and their gradients.
    return 4 * (2 * heads.hidden_size + 4 * layers)


class LinearLoss(torch.autograd.Function):
    """(job, rows, labels, drop_uniform, hidden_states, *job.trained) -> losses, counted.

    rows [n] are the positions with a label, numbered as in labels and drop_uniform, which are those
    of all positions, flattened. losses float32 [2, n], counted bool [2, n].
    """

    @staticmethod
    def forward(
        ctx: Any,
        job: LinearLossJob,
        rows: Tensor,
        labels: Tensor,
        drop_uniform: Tensor | None,
        hidden_states: Tensor,
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor]:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=rows.device)

        n = len(rows)
        losses, counted = empty(2, n), empty(2, n, dtype=torch.bool)
        temperature, gradients = empty(n), empty(3, n)
        statistics = empty(n, 4) if job.heads.reads_statistics else None
        kept_top_p = empty(n) if job.train_base else None
        chunks = list(_chunks(n, job.chunk_size))
        most_rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        buffer = job.lm_head.buffer(most_rows, hidden_states)
        missing_calls = job.lm_head.missing_calls(len(chunks), rows.device)
        for chunk in chunks:
            hidden = _take(hidden_states, rows[chunk])
            logits = job.lm_head.logits(hidden, buffer)
            hidden = hidden.float()
            temperature[chunk] = job.heads.predict_temperature(hidden)
            if statistics is not None:
                with errors_named(job.op, rows[chunk], predicted=_PREDICTED):
                    statistics[chunk] = distribution_stats(logits, temperature[chunk])
            top_p = job.heads.predict_top_p(hidden, temperature[chunk], _part(statistics, chunk))
            if kept_top_p is not None:
                kept_top_p[chunk] = top_p
            with errors_named(job.op, rows[chunk], predicted=_PREDICTED):
                losses[:, chunk], gradients[:, chunk], counted[:, chunk] = call(
                    _ops.autodeco_loss_rows,
                    logits,
                    temperature[chunk],
                    top_p,
                    labels[rows[chunk]],
                    _part(drop_uniform, rows[chunk]),
                    *job.options,
                    job.check,
                )
            del logits  # before those of the next chunk are made
        for _ in range(missing_calls):  # ranks with more labels wait for this one
            job.lm_head.project(hidden_states.new_zeros(1, hidden_states.shape[-1]))
        for_logits = (labels, kept_top_p, counted) if job.train_base else (None, None, None)
        ctx.save_for_backward(
            hidden_states, rows, temperature, statistics, gradients, *for_logits, *trained
        )
        ctx.job = job
        ctx.autocast = _autocast(hidden_states.device.type)
        ctx.mark_non_differentiable(counted)
        return losses, counted

    @staticmethod
    def backward(ctx: Any, loss_gradients: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        # Read once: a second read unpacks everything again, which checkpointing refuses.
        saved = ctx.saved_tensors
        with torch.no_grad(), ctx.autocast:
            totals = _input_gradients(ctx, saved, loss_gradients)
        depends_on = (loss_gradients, saved[0], *ctx.job.trained)
        return (
            *[None] * 4,
            *(
                None if total is None else first_derivative(ctx.job.op, total, depends_on)
                for total in totals
            ),
        )


def _input_gradients(
    ctx: Any, saved: Sequence[Tensor | None], loss_gradients: Tensor
) -> list[Tensor | None]:
    """For hidden_states and job.trained."""
    job: LinearLossJob = ctx.job
    hidden_states, rows, temperature, statistics, gradients, *for_logits = saved[:8]
    needs_hidden = ctx.needs_input_grad[4]
    of_hidden = torch.zeros_like(hidden_states) if needs_hidden else None
    # Many chunks are added up: in float32 at least.
    totals = [
        torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32))
        for one in job.trained
    ]
    num_heads = len(job.head_parameters)
    for chunk in _chunks(len(rows), job.backward_chunk_size()):
        hidden = _take(hidden_states, rows[chunk])
        with torch.enable_grad():
            leaf = hidden.float().requires_grad_(needs_hidden)
            predicted = [
                job.heads.predict_temperature(leaf),
                job.heads.predict_top_p(leaf, temperature[chunk], _part(statistics, chunk)),
            ]
        through_losses = gradients[:, chunk] * loss_gradients[[0, 1, 1], chunk]
        of_predicted = [through_losses[0] + through_losses[1], through_losses[2]]
        inputs = [*job.head_parameters, *([leaf] if needs_hidden else ())]
        parts = _vector_jacobian(predicted, of_predicted, inputs)
        _add(totals[:num_heads], parts)
        if not job.train_base:
            continue
        through_logits, *parts_of_lm_head = job.lm_head.gradients(
            hidden,
            lambda logits, chunk=chunk: _logits_gradient(
                job, logits, rows, temperature, for_logits, loss_gradients, chunk
            ),
        )
        _add(totals[num_heads:], parts_of_lm_head)
        if of_hidden is not None:
            total = through_logits.float()
            if parts[-1] is not None:
                total += parts[-1]
            _put(of_hidden, rows[chunk], total)
    of_trained = [total.to(one.dtype) for total, one in zip(totals, job.trained, strict=True)]
    return [of_hidden, *of_trained]


def _logits_gradient(
    job: LinearLossJob,
    logits: Tensor,
    rows: Tensor,
    temperature: Tensor,
    for_logits: Sequence[Tensor],
    loss_gradients: Tensor,
    chunk: slice,
) -> Tensor:
    labels, top_p, counted = for_logits
    return _ops.autodeco_loss_logits_gradient(
        logits,
        temperature[chunk],
        top_p[chunk],
        labels[rows[chunk]],
        counted[:, chunk].contiguous(),
        loss_gradients[:, chunk].contiguous(),
        *job.options.of_gradient(),
    )


def _vector_jacobian(
    outputs: list[Tensor], vectors: list[Tensor], inputs: list[Tensor]
) -> Sequence[Tensor | None]:
    """torch.autograd.grad, also where an output depends on no input (a head that is off)."""
    pairs = [pair for pair in zip(outputs, vectors, strict=True) if pair[0].requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    outputs, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, inputs, vectors, allow_unused=True)


def _add(totals: list[Tensor], parts: Sequence[Tensor | None]) -> None:
    for total, part in zip(totals, parts, strict=False):
        if part is not None:
            total += part


def _part(values: Tensor | None, index: slice | Tensor) -> Tensor | None:
    return None if values is None else values[index]


def _chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most this size, as even as they can be: a short last one multiplies badly."""
    number = -(-rows // size)
    for index in range(number):
        yield slice(index * rows // number, (index + 1) * rows // number)


def _take(hidden_states: Tensor, rows: Tensor) -> Tensor:
    """hidden_states.flatten(0, -2)[rows]; of a slice the flattened tensor would be a copy."""
    return hidden_states[torch.unravel_index(rows, hidden_states.shape[:-1])]


def _put(hidden_states: Tensor, rows: Tensor, values: Tensor) -> None:
    index = torch.unravel_index(rows, hidden_states.shape[:-1])
    hidden_states[index] = values.to(hidden_states.dtype)


def _autocast(device_type: str) -> contextlib.AbstractContextManager:
    """What the caller has on: backward, which runs outside of it, computes what forward did."""
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(
        device_type,
        dtype=torch.get_autocast_dtype(device_type),
        enabled=torch.is_autocast_enabled(device_type),
    )
