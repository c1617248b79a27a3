"""What a base model does to its LM head's output before that is its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor], torch.Tensor]


def logits_transform(model: Any) -> Step | None:
    """The function from the LM head's output to the logits, as far as it is known; None for none.

    Known are the scale of Cohere, that of Granite, and the soft cap that Gemma introduced. What a
    base of another kind does is not seen here: check_logits_transform sees it.
    """
    config = model.config.get_text_config()
    steps: list[Step] = []
    scale = getattr(model, "logit_scale", None)
    if scale is not None:
        steps.append(lambda logits: logits * scale)
    divisor = getattr(config, "logits_scaling", 1.0)
    if config.model_type.startswith("granite") and divisor != 1.0:
        steps.append(lambda logits: logits / divisor)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        steps.append(lambda logits: (logits / cap).tanh_().mul_(cap))
    if not steps:
        return None

    def apply(logits: torch.Tensor) -> torch.Tensor:
        for step in steps:
            logits = step(logits)
        return logits

    return apply


@torch.compiler.disable(reason="it decides on a value")
@torch.no_grad()
def check_logits_transform(
    model: Any, transform: Step | None, hidden_states: torch.Tensor, logits: torch.Tensor
) -> None:
    """Raise ValueError unless the LM head and transform make the base's own logits of these rows.

    To one percent, which the rounding of a 16-bit product stays below.
    """
    ours = model.get_output_embeddings()(hidden_states)
    if transform is not None:
        ours = transform(ours)
    same = ours.shape == logits.shape and torch.allclose(
        ours.float(), logits.float(), rtol=1e-2, atol=1e-2, equal_nan=True
    )
    if not same:
        raise ValueError(
            "autodeco_ext.AutoDecoModelForCausalLM.forward: skip_logits must be False for"
            f" {model._base_class.__name__}, which changes its logits after the LM head in a way"
            " that is not known here, got True (the default in training)"
        )
