"""The optimisers of models: AdamW, and Muon for convolution kernels beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Optimiser = Literal["adamw", "muon"]

FEWEST_CHANNELS = 16  # in and out, of a kernel between hidden layers
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration, as Jordan et al. tuned them
ITERATIONS = 5


class MuonAdamW(torch.optim.AdamW):
    """Muon for kernels between hidden layers, AdamW for what else there is.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) turns the momentum of a matrix into
    the nearest orthogonal one, so that all directions are learnt at one rate; a kernel
    (C_out, C_in, k, k) is the matrix (C_out, C_in k k). Its steps are scaled to the size of those
    of AdamW, for one learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4). `torch.optim.Muon`
    does the same in bf16, for matrices alone.

    Args:
        params: Parameters; their shapes say what each is.
        lr: Learning rate of both.
        betas: Of AdamW.
        weight_decay: Of both.
        momentum: Of Muon, with Nesterov's look ahead.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        params = list(params)
        kernels = [p for p in params if _is_hidden_kernel(p)]
        others = [p for p in params if not _is_hidden_kernel(p)]
        groups: list[dict[str, Any]] = [
            {"params": some, "momentum": value}
            for some, value in ((kernels, momentum), (others, None))
            if some
        ]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, after the closure if there is one, whose value is returned."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        taken: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            if group["momentum"] is None:
                continue
            for kernel in group["params"]:
                if kernel.grad is not None:
                    self._turn(kernel, group)
                    taken.append((kernel, kernel.grad))
                    kernel.grad = None  # which AdamW passes over
        super().step()
        for kernel, gradient in taken:
            kernel.grad = gradient
        return value

    def _turn(self, kernel: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient, momentum = self.state[kernel], kernel.grad, group["momentum"]
        assert gradient is not None
        if not state:  # AdamW looks for a count when a checkpoint is read
            state.update(step=torch.tensor(0.0), momentum_buffer=torch.zeros_like(gradient))
        state["step"] += 1
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(state["momentum_buffer"], momentum).flatten(1)
        size = 0.2 * math.sqrt(max(ahead.shape))
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(orthogonal(ahead).view_as(kernel), alpha=-group["lr"] * size)


OPTIMISERS: dict[str, type[torch.optim.AdamW]] = {"adamw": torch.optim.AdamW, "muon": MuonAdamW}


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to one (M, N): singular values of 0.7 to 1.2.

    Newton-Schulz iterations of fifth order, `X <- p(X X^T) X` with `p(G) = a + b G + c G^2`. As all
    of them are polynomials of the first Gram matrix, they are made on that, which is small, and
    their product is applied once: for M <= N `4 M^2 N + 40 M^3` operations, where the iterations as
    they stand take `20 M^2 N + 10 M^3`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    one = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = one
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        factor = torch.addmm(a * one + b * gram, gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    turned = product @ x
    return turned.T if tall else turned


def _is_hidden_kernel(parameter: Tensor) -> bool:
    return parameter.ndim == 4 and min(parameter.shape[:2]) >= FEWEST_CHANNELS
