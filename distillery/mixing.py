"""How much a student listens to each of several teachers."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from distillery.config import Confidence, Fixed, Mixing
from distillery.schema import UNLABELLED


def teacher_weights(mixing: Mixing, logits: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """Weights of the teachers for each row; over the teachers they sum to 1.

    Args:
        mixing: by which rule.
        logits: teacher -> (B, C).
        target: (B,) class numbers, -1 where unlabelled.

    Returns:
        Teacher -> (B,).
    """
    if isinstance(mixing, Confidence) and len(logits) > 1:
        weights = confidence(torch.stack(list(logits.values())), target)
        return dict(zip(logits, weights, strict=True))
    shares = mixing.weights if isinstance(mixing, Fixed) else dict.fromkeys(logits, 1.0)
    total = sum(shares[key] for key in logits)
    return {key: torch.full_like(values[:, 0], shares[key] / total) for key, values in logits.items()}


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Listens most to the teacher that is least surprised (CA-MKD, Zhang, Chen, Wang 2022, equations 4 and 5).

    `w_k = (1 - exp(L_k) / sum_j exp(L_j)) / (K - 1)`, where `L_k` is the cross-entropy of teacher k with the label;
    where there is none, the entropy of what it says.

    Args:
        logits: (K, B, C) of K > 1 teachers.
        target: (B,) class numbers, -1 where unlabelled.

    Returns:
        (K, B), at least 0, summing to 1 over the teachers.
    """
    log_probabilities = functional.log_softmax(logits, dim=2)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(2)
    labels = target.clamp_min(0).expand(len(logits), -1)
    surprise = -log_probabilities.gather(2, labels.unsqueeze(2)).squeeze(2)
    losses = torch.where(target != UNLABELLED, surprise, entropy)
    return (1 - functional.softmax(losses, dim=0)) / (len(logits) - 1)
