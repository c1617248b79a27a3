"""Training both heads on hidden states that the frozen base computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autodeco_ext._lm_head import LogitsTransform
from autodeco_ext.evaluation.answering import Answer, Answerer
from autodeco_ext.linear_loss import linear_autodeco_loss
from autodeco_ext.models.heads import AutoDecoHeads
from autodeco_ext.models.logits_transform import logits_transform, makes_logits
from autodeco_ext.reference import philox_uniform

_EASY_TOKEN_STREAM = 3  # of the Philox streams: which uniform numbers decide the easy-token drop

Progress = Callable[[int], None]


class UnsupportedBase(ValueError):
    """Hidden states alone do not give the base's logits: it changes them after the LM head in a way
    that is not known."""


@dataclass(frozen=True)
class CachedPositions:
    """What training needs of every answer token, and what the base does to its LM head's output."""

    hidden_states: torch.Tensor  # [positions, hidden], the LM head's input, in the base's dtype
    labels: torch.Tensor  # [positions] int64, the token that followed
    answers: int
    logits_transform: LogitsTransform | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FitSettings:
    """How the heads are trained: AdamW without decay, a constant learning rate, released losses."""

    epochs: int = 6
    learning_rate: float = 3e-4
    positions_per_step: int = 128
    seed: int = 0

    def steps(self, positions: int) -> int:
        return self.epochs * -(-positions // self.positions_per_step)


@dataclass(frozen=True)
class EpochLoss:
    """Means of the losses of one epoch's steps, each weighted by the step's positions."""

    loss: float
    temperature_loss: float
    top_p_loss: float


@torch.no_grad()
def cache_positions(
    answerer: Answerer, answers: Sequence[Answer], progress: Progress | None = None
) -> CachedPositions:
    """Run the base once over every answer and keep the LM head's input before each of its tokens.

    progress is called with the number of answers done.

    Raises:
        ValueError: there is no answer.
        UnsupportedBase: the base changes its LM head's output in a way that is not known.
    """
    if not answers:
        raise ValueError("autodeco_ext.training: answers must not be empty, got none to train on")
    model = answerer.model
    lm_head, transform = model.get_output_embeddings(), logits_transform(model)
    hidden_states, labels = [], []
    for start in range(0, len(answers), answerer.rows):
        batch = answers[start : start + answerer.rows]
        tokens = [answer.token_ids for answer in batch]
        texts = [
            answerer.question_ids(one.problem) + ids for one, ids in zip(batch, tokens, strict=True)
        ]
        input_ids, mask = answerer.padded(texts)
        longest = max(len(ids) for ids in tokens)
        with _inputs_of(lm_head) as captured:
            # The last token of an answer is a label only, so nothing has to be computed at it.
            outputs = answerer.forward(
                input_ids[:, :-1],
                mask[:, :-1],
                answerer.prefix_cache(len(batch)),
                logits_to_keep=longest,
            )
        (hidden,) = captured
        if start == 0 and not makes_logits(model, transform, hidden[:1], outputs.logits[:1]):
            raise UnsupportedBase(
                f"autodeco_ext.training: the logits of {type(model).__name__} must be the output of"
                " its LM head, plain or with a soft cap or scale that is known, to train on cached"
                " hidden states, got logits that are changed after it in another way"
            )
        # Padding is on the left, so the last len(ids) positions predict the answer's tokens.
        hidden_states += [hidden[row, -len(ids) :] for row, ids in enumerate(tokens)]
        labels += tokens
        if progress is not None:
            progress(len(batch))
    flat = torch.tensor([token for ids in labels for token in ids], dtype=torch.int64)
    return CachedPositions(
        torch.cat(hidden_states), flat.to(hidden_states[0].device), len(answers), transform
    )


def fit_heads(
    heads: AutoDecoHeads,
    lm_head: nn.Module,
    positions: CachedPositions,
    settings: FitSettings,
    *,
    vocab: int,
    progress: Callable[[float], None] | None = None,
) -> list[EpochLoss]:
    """Train the heads in place with the released losses; return the mean losses of every epoch.

    The base's logits are computed again from the cached hidden states, a chunk at a time: they are
    far larger than the hidden states. Columns of them at or beyond vocab are left out. progress is
    called after every step with its loss. The same settings give the same heads.
    """

    def logits_of(projected: torch.Tensor) -> torch.Tensor:
        logits, transform = projected[:, :vocab], positions.logits_transform
        return logits if transform is None else transform(logits)

    heads.train()
    parameters = [one for one in heads.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(settings.seed)
    history = []
    for epoch in range(settings.epochs):
        sums = torch.zeros(3, dtype=torch.float64)
        for chosen in torch.randperm(len(positions), generator=order).split(
            settings.positions_per_step
        ):
            chosen = chosen.to(positions.labels.device)
            uniform = philox_uniform(
                torch.full_like(chosen, settings.seed),
                epoch * len(positions) + chosen,
                _EASY_TOKEN_STREAM,
            )
            losses = linear_autodeco_loss(
                positions.hidden_states[chosen],
                lm_head,
                heads,
                positions.labels[chosen],
                logits_transform=logits_of,
                drop_uniform=uniform.float(),
            )
            optimizer.zero_grad()
            losses.loss.backward()
            optimizer.step()
            sums += len(chosen) * torch.stack([part.detach().double().cpu() for part in losses])
            if progress is not None:
                progress(losses.loss.item())
        history.append(EpochLoss(*(sums / len(positions)).tolist()))
    heads.eval()
    return history


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    # Not capture_lm_head_input: the model's own forward is inside, and the inner capture takes all.
    captured: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0]))
    try:
        yield captured
    finally:
        handle.remove()
