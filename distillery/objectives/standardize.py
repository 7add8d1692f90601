"""Logit standardisation, a switch on `kd` and `dkd`.

Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1: each row of logits becomes its z-score
before the softmax, so the student copies the relations between the teacher's logits and not their size.
"""

import torch
from torch import Tensor

from distillery.errors import UserError
from distillery.objectives.objective import Setting

EPSILON = 1e-7


def standardize(logits: Tensor) -> Tensor:
    """`(z - mean) / (deviation + 1e-7)` of each row.

    The deviation divides by C, as the paper's equation does; the code published with it divides by C - 1, which is
    the same as a temperature larger by sqrt(C / (C - 1)).

    Args:
        logits: (B, C).

    Returns:
        (B, C) z-scores. A constant row is only centred: dividing it by the epsilon would multiply its gradient by 1e7.
    """
    centred = logits - logits.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    # Rounding of the mean leaves a deviation in proportion to the logits where there is none.
    rounding = 4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(1, keepdim=True)
    constant = deviation <= EPSILON + rounding
    return centred / torch.where(constant, torch.ones_like(deviation), deviation + EPSILON)


def check_standardize(name: str, setting: Setting) -> None:
    """Refuses two classes.

    Raises:
        UserError: the z-scores of two logits are +1 and -1 whatever the logits are.
    """
    if setting.classes < 3:
        raise UserError(
            f"{name}.standardize needs three classes or more: the z-scores of two logits are always +1 and -1, "
            "so nothing would be learned; set it to false"
        )
