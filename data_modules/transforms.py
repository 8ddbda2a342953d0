"""One-to-one maps that bring heavy-tailed variables, such as rain, nearer to a Gaussian."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from data_modules.errors import DataError


@dataclass(frozen=True)
class Transform:
    """A map of the values of a channel before they are standardised, and its exact inverse.

    ======  ============================  ===============================
    kind    y                             x
    ======  ============================  ===============================
    log     sign(x) log(1 + |x| / scale)  sign(y) scale (exp(|y|) - 1)
    power   sign(x) (|x| / scale)^p       sign(y) scale |y|^(1/p)
    ======  ============================  ===============================

    Both are odd and defined for all numbers, so that rain a little below zero, as packing leaves
    it, and as models make it, is no fault.

    Args:
        kind: log or power.
        scale: In the units of the variable; to log what is much smaller is as good as zero.
        exponent: p of a power.
        lower: Least value that there can be in physical units, to which the inverse raises what is
            below it, such as 0 for rain; None leaves it as it is.

    Raises:
        DataError: For a scale or exponent that is not positive, or another kind.
    """

    kind: Literal["log", "power"] = "log"
    scale: float = 1.0
    exponent: float = 0.5
    lower: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("log", "power"):
            raise DataError(f"The transform '{self.kind}' is unknown; it can be log or power.")
        if self.scale <= 0 or self.exponent <= 0:
            raise DataError(
                f"A transform has scale {self.scale:g} and exponent {self.exponent:g}; make both "
                "positive."
            )

    def forward(self, x: Tensor) -> Tensor:
        """From physical units; any shape."""
        size = x.abs() / self.scale
        return x.sign() * (size.log1p() if self.kind == "log" else size**self.exponent)

    def inverse(self, y: Tensor) -> Tensor:
        """Back to physical units; any shape."""
        size = y.abs()
        size = size.expm1() if self.kind == "log" else size ** (1 / self.exponent)
        x = y.sign() * size * self.scale
        return x if self.lower is None else x.clamp_min(self.lower)

    def state(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)
