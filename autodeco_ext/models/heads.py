"""AutoDecoHeads: two small MLPs that predict temperature and top_p from the last hidden state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autodeco_ext._arguments import (
    call,
    checks_rows,
    errors_named,
    require_bool,
    require_supported_device,
)
from autodeco_ext.models.configuration import AutoDecoConfig
from autodeco_ext.ops import distribution_stats

NUM_STATS = 4  # what distribution_stats returns


class HeadOutput(NamedTuple):
    """Predictions of the heads, float32, one per position."""

    temperature: Tensor
    top_p: Tensor


@torch.compiler.assume_constant_result  # torch.compile of torch 2.11 cannot look inside
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _errors_named() -> contextlib.AbstractContextManager[None]:
    return errors_named("AutoDecoHeads", predicted=HeadOutput._fields)


@contextlib.contextmanager
def _full_float32(device_type: str) -> Iterator[None]:
    """Full float32 products, whatever autocast and torch.set_float32_matmul_precision said.

    That setting belongs to the process and is put back on leaving. Under torch.compile, which
    cannot trace the change, and in the backward pass the process's own setting holds.
    """
    if not _has_autocast(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False), _without_tf32(device_type):
        yield


@contextlib.contextmanager
def _without_tf32(device_type: str) -> Iterator[None]:
    if torch.compiler.is_compiling() or torch.get_float32_matmul_precision() == "highest":
        yield
        return
    matmul = (torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn).matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _Head(nn.Module):
    """W2 relu(W1 x + b1) + b2, one number per row."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features).squeeze(-1)


class AutoDecoHeads(nn.Module):
    """Predicts the temperature and top_p of each position from its hidden state and logits.

    T = 2 sigmoid(mlp_T(h)) and P = sigmoid(mlp_P(x)), with mlp(x) = W2 relu(W1 x + b1) + b2 and
    x = [h, T, max q, entropy, variance, top 5] of q = softmax(l / (T + 1e-8)), or [h, T] without
    enhanced features. T is detached where it enters x, and the logits are constants.

    Parameters are named and shaped as in released checkpoints: {temp_head,top_p_head}.mlp.{0,2}.
    {weight,bias}. A new module has torch's default initialisation of nn.Linear, as the released
    code has: small random outputs, so T is near 1 and P near 0.5 until it is trained. That is not
    neutral: P = 0.5 cuts half of the mass.

    Everything is computed in float32, also under autocast and with TF32 on, and parameters stay
    float32: `heads.to(torch.bfloat16)`, or of a model that contains them, moves nothing but the
    device.

    Args:
        config: widths and which heads there are. A head that is off predicts 1 everywhere.

    Example:
        >>> import torch
        >>> heads = AutoDecoHeads(AutoDecoConfig(hidden_size=64))
        >>> temperature, top_p = heads(torch.zeros(2, 3, 64), torch.zeros(2, 3, 1000))
        >>> temperature.shape, top_p.dtype
        (torch.Size([2, 3]), torch.float32)
    """

    def __init__(self, config: AutoDecoConfig) -> None:
        super().__init__()
        if not isinstance(config, AutoDecoConfig):
            raise TypeError(
                "autodeco_ext.AutoDecoHeads: config must be an AutoDecoConfig, "
                f"got {type(config).__name__}"
            )
        self.hidden_size = config.hidden_size
        self.use_enhanced_features = config.use_enhanced_features
        extra = 1 + NUM_STATS if config.use_enhanced_features else 1
        self.temp_head = (
            _Head(config.hidden_size, config.temperature_hidden_size)
            if config.enable_temperature_head
            else None
        )
        self.top_p_head = (
            _Head(config.hidden_size + extra, config.top_p_hidden_size)
            if config.enable_top_p_head
            else None
        )

    def forward(self, hidden_states: Tensor, logits: Tensor) -> HeadOutput:
        """Temperature in [0, 2] and top_p in [0, 1] of every position.

        Args:
            hidden_states: [..., H], input of the LM head, any floating point dtype.
            logits: [..., V], the base's unscaled logits, float32, bfloat16 or float16, vocabulary
                stride 1. Read only by a top-p head with enhanced features.

        Returns:
            HeadOutput(temperature, top_p), float32 [...]. Gradients flow to the hidden states and
            the weights.

        Raises:
            ValueError: a shape or device does not fit, or (CPU) a row has NaN or no finite logit.
            TypeError: hidden_states or logits are not floating point tensors.
        """
        if not self._needs_gradient(hidden_states):
            return self.predict(hidden_states, logits)
        self._check(hidden_states, logits)
        return self._predict_with_gradient(hidden_states, logits)

    def predict(
        self,
        hidden_states: Tensor,
        logits: Tensor,
        *,
        needs_top_p: bool = True,
        check: bool | None = None,
    ) -> HeadOutput:
        """What forward returns, without a gradient: two products, and one op for all the rest.

        Args:
            hidden_states, logits: as in forward, V at most 2^20 where the top-p head reads them.
            needs_top_p: False leaves the top-p head out; top_p is then 1 everywhere.
            check: raise on a row whose logits the top-p head cannot read; None is True on the CPU
                and False on CUDA. Without it such a row has top_p NaN.

        Raises:
            ValueError, TypeError: as in forward.

        Determinism: given the products, bitwise independent of batch and threads.
        """
        self._check(hidden_states, logits)
        require_supported_device("AutoDecoHeads", logits)
        require_bool("AutoDecoHeads", "needs_top_p", needs_top_p)
        temperature_layers: tuple[Tensor | None, ...] = (None,) * 4
        top_p_layers: tuple[Tensor | None, ...] = (None,) * 5
        with torch.no_grad(), _full_float32(hidden_states.device.type):
            hidden_states = hidden_states.float()
            if self.temp_head is not None:
                first, _, second = self.temp_head.mlp
                product = F.linear(hidden_states, first.weight)
                temperature_layers = (product, first.bias, second.weight, second.bias)
            if self.top_p_head is not None and needs_top_p:
                first, _, second = self.top_p_head.mlp
                # Views: a packed copy would be stale after the next change of the weights.
                for_hidden = first.weight[:, : self.hidden_size]
                for_features = first.weight[:, self.hidden_size :]
                product = F.linear(hidden_states, for_hidden)
                top_p_layers = (product, for_features, first.bias, second.weight, second.bias)
        arguments = (logits, *temperature_layers, *top_p_layers)
        check = checks_rows("AutoDecoHeads", check, logits)
        with torch.no_grad(), _errors_named():
            return HeadOutput(*call(torch.ops.autodeco_ext.predict_parameters, *arguments, check))

    def _needs_gradient(self, hidden_states: Tensor) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(tensor, Tensor) and tensor.requires_grad
            for tensor in (hidden_states, *self.parameters())
        )

    def predict_temperature(self, hidden_states: Tensor) -> Tensor:
        """float32 [...], as in forward, with a gradient; hidden_states [..., H]."""
        hidden_states = hidden_states.float()
        if self.temp_head is None:
            return hidden_states.new_ones(hidden_states.shape[:-1])
        with _full_float32(hidden_states.device.type):
            return 2 * self.temp_head(hidden_states).sigmoid()

    def predict_top_p(
        self, hidden_states: Tensor, temperature: Tensor, statistics: Tensor | None
    ) -> Tensor:
        """float32 [...], as in forward, with a gradient into hidden_states and the weights alone.

        statistics: distribution_stats of the logits at temperature, [..., 4]; read where
        `reads_statistics`.
        """
        hidden_states = hidden_states.float()
        if self.top_p_head is None:
            return hidden_states.new_ones(hidden_states.shape[:-1])
        features = [hidden_states, temperature.detach().unsqueeze(-1)]
        if self.reads_statistics:
            features.append(statistics.detach())
        with _full_float32(hidden_states.device.type):
            return self.top_p_head(torch.cat(features, dim=-1)).sigmoid()

    @property
    def reads_statistics(self) -> bool:
        """Whether there is a top-p head with enhanced features, the one that reads the logits."""
        return self.top_p_head is not None and self.use_enhanced_features

    def _predict_with_gradient(self, hidden_states: Tensor, logits: Tensor) -> HeadOutput:
        hidden_states = hidden_states.float()  # once for both heads
        temperature = self.predict_temperature(hidden_states)
        statistics = None
        if self.reads_statistics:
            with _errors_named():
                statistics = distribution_stats(logits.detach(), temperature.detach())
        return HeadOutput(temperature, self.predict_top_p(hidden_states, temperature, statistics))

    def _check(self, hidden_states: Tensor, logits: Tensor) -> None:
        for name, value in (("hidden_states", hidden_states), ("logits", logits)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"autodeco_ext.AutoDecoHeads: {name} must be a floating point tensor, got {got}"
                )
        shape = list(hidden_states.shape)
        if not shape or shape[-1] != self.hidden_size:
            raise ValueError(
                "autodeco_ext.AutoDecoHeads: hidden_states must have shape "
                f"[..., {self.hidden_size}] (the heads' hidden_size), got {shape}"
            )
        if logits.dim() != len(shape) or list(logits.shape[:-1]) != shape[:-1]:
            expected = ", ".join([*(str(size) for size in shape[:-1]), "vocab"])
            raise ValueError(
                f"autodeco_ext.AutoDecoHeads: logits must have shape [{expected}] to go with "
                f"hidden_states, got {list(logits.shape)}"
            )
        weight = next(self.parameters(), None)
        device = hidden_states.device if weight is None else weight.device
        for name, value in (("hidden_states", hidden_states), ("logits", logits)):
            if value.device != device:
                raise ValueError(
                    f"autodeco_ext.AutoDecoHeads: {name} must be on {device} like the heads, "
                    f"got {value.device}"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == torch.float32:
                return moved
            return tensor.to(device=moved.device, dtype=torch.float32)

        return super()._apply(keep_float32, recurse)


def require_heads(op: str, heads: object) -> None:
    if not isinstance(heads, AutoDecoHeads):
        raise TypeError(
            f"autodeco_ext.{op}: heads must be an AutoDecoHeads, got {type(heads).__name__}"
        )
