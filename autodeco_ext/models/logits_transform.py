"""What a base model does to its LM head's output before that is its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

Step = Callable[[torch.Tensor], torch.Tensor]

# By how much of the largest logit two ways to the same product may differ: some steps of a 16-bit
# dtype, and in float32 another order of the sum.
_TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
_FLOAT32_TOLERANCE = 1e-4

# model -> the constants of the transform it was checked with. Not kept on the model, so that a copy
# or a pickle of it is what it was.
_checked: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def logits_transform(model: Any) -> Step | None:
    """The function from the LM head's output to the logits, as far as it is known; None for none.

    Known are the scale of Cohere, that of Granite, and the soft cap that Gemma introduced. What a
    base of another kind does is not seen here: check_logits_transform sees it.
    """
    scale, divisor, cap = _constants(model)
    steps: list[Step] = []
    if scale is not None:
        steps.append(lambda logits: logits * scale)
    if divisor is not None:
        steps.append(lambda logits: logits / divisor)
    if cap is not None:
        steps.append(lambda logits: (logits / cap).tanh_().mul_(cap))
    if not steps:
        return None

    def apply(logits: torch.Tensor) -> torch.Tensor:
        for step in steps:
            logits = step(logits)
        return logits

    return apply


def _constants(model: Any) -> tuple[Any, ...]:
    """Scale, divisor and cap; None for what the base does not have."""
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", 1.0)
    if divisor == 1.0 or not config.model_type.startswith("granite"):
        divisor = None
    scale = getattr(model, "logit_scale", None)
    return scale, divisor, getattr(config, "final_logit_softcapping", None)


@torch.compiler.disable(reason="it decides on a value")
def check_logits_transform(
    model: Any, transform: Step | None, hidden_states: torch.Tensor, logits: torch.Tensor
) -> None:
    """Raise ValueError unless the LM head and transform make the base's own logits of these rows.

    It looks once per model and constants of the transform: it multiplies the LM head and waits for
    the device. A change that these rows do not show (a soft cap far above their logits) passes.
    """
    # No position shows nothing: the next batch is looked at.
    if logits.numel() == 0 or _checked.get(model) == _constants(model):
        return
    if not makes_logits(model, transform, hidden_states, logits):
        raise ValueError(
            "autodeco_ext.AutoDecoModelForCausalLM.forward: skip_logits must be False for"
            f" {model._base_class.__name__}, which changes its logits after the LM head in a way"
            " that is not known here, got True (the default in training)"
        )
    _checked[model] = _constants(model)


@torch.no_grad()
def makes_logits(
    model: Any, transform: Step | None, hidden_states: torch.Tensor, logits: torch.Tensor
) -> bool:
    """Whether the LM head and transform make the base's own logits of these rows, 1 or more."""
    ours = model.get_output_embeddings()(hidden_states)
    if transform is not None:
        ours = transform(ours)
    return ours.shape == logits.shape and _are_close(ours, logits)


def _are_close(ours: torch.Tensor, logits: torch.Tensor) -> bool:
    """NaN and the infinities are like themselves."""
    tolerance = max(_TOLERANCES.get(one.dtype, _FLOAT32_TOLERANCE) for one in (ours, logits))
    ours, logits = ours.float(), logits.float()
    largest = logits.nan_to_num(0, 0, 0).abs().max()
    same = (ours == logits) | (ours.isnan() & logits.isnan())
    return bool((same | ((ours - logits).abs() <= tolerance * largest)).all())
