"""AdamW with what finetuning needs: no decay on vectors, smaller steps towards the stem, a schedule, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.recipe import TrainSettings

__all__ = ["Averaged", "learning_stages", "lr_factor", "make_optimiser"]


def make_optimiser(classifier: IPSClassifier, train: TrainSettings) -> torch.optim.AdamW:
    """Group the learning parameters: head and projector at `lr`, encoder stage k from the end at lr x layer_decay^k.

    Vectors (norms, biases) and the learned queries are not decayed.
    """
    stages = classifier.encoder.parameter_groups() if classifier.takes_tiles else []
    in_encoder = {id(p) for stage in stages for p in stage}
    head = [p for p in classifier.parameters() if p.requires_grad and id(p) not in in_encoder]
    layers = [(head, train.lr)] + [(s, train.lr * train.layer_decay**k) for k, s in enumerate(reversed(stages), 1)]
    groups = []
    for parameters, lr in layers:
        decays = [p for p in parameters if p.ndim > 1 and p is not classifier.attention.query]
        plain = [p for p in parameters if not any(p is d for d in decays)]
        groups += [{"params": decays, "lr": lr, "weight_decay": train.weight_decay}] if decays else []
        groups += [{"params": plain, "lr": lr, "weight_decay": 0.0}] if plain else []
    return torch.optim.AdamW(groups, lr=train.lr)


def learning_stages(train: TrainSettings, epoch: int) -> int:
    """Last stages of the encoder that learn in an epoch, counted from 1; see `Encoder.set_trainable`."""
    if train.head_first < epoch <= train.epochs - train.head_last:
        return -1 if train.train_stages is None else train.train_stages
    return 0


def lr_factor(train: TrainSettings, steps: int) -> Callable[[int], float]:
    """Linear warm-up over `warmup_epochs`, then cosine to a thousandth, by step."""
    warm, total = train.warmup_epochs * steps, max(1, train.epochs * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        along = min(1.0, (step - warm) / max(1.0, total - warm))
        return 0.001 + 0.999 * 0.5 * (1.0 + math.cos(math.pi * along))

    return factor


class Averaged:
    """An exponential moving average of the weights; what is validated and kept when `ema` is set.

    The first steps count more, decay min(ema, (1 + t) / (10 + t)), so that the average forgets the start.
    """

    def __init__(self, classifier: IPSClassifier, decay: float) -> None:
        self.decay, self.n_steps = decay, 0
        self.model = copy.deepcopy(classifier) if decay > 0.0 else classifier

    @torch.no_grad()
    def update(self, classifier: IPSClassifier) -> None:
        """Take a step's weights in."""
        if self.decay == 0.0:
            return
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        for mine, theirs in zip(self.model.parameters(), classifier.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - decay)
        for kept, moved in zip(self.model.buffers(), classifier.buffers(), strict=True):
            kept.copy_(moved)  # statistics, which move where the encoder learns on those of its batches

    def state(self) -> dict[str, torch.Tensor]:
        """Averaged weights, for a checkpoint; empty without an average."""
        return {k: v.clone() for k, v in self.model.state_dict().items()} if self.decay > 0.0 else {}

    def restore(self, state: dict[str, torch.Tensor], n_steps: int) -> None:
        """Go back to a checkpoint."""
        self.n_steps = n_steps
        if self.decay > 0.0:
            self.model.load_state_dict(state)


def clip(parameters: list[nn.Parameter], norm: float) -> float:
    """Scale gradients down to a largest norm; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], norm))
