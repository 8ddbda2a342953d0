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
        spread: Half-normal noise, of so many standard deviations of the channel, by which values at
            `lower` are lowered when they are standardised. Where two days of five are dry, nothing
            rains 0 exactly that a smooth density is to learn; below 0 there is room for them, as in
            a Gaussian that is cut off at 0 (Bell 1987, doi:10.1029/JD092iD08p09631). The inverse
            is as exact with it.

    Raises:
        DataError: For a scale or exponent that is not positive, another kind, or a spread that is
            negative or below no lower.
    """

    kind: Literal["log", "power"] = "log"
    scale: float = 1.0
    exponent: float = 0.5
    lower: float | None = None
    spread: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("log", "power"):
            raise DataError(f"The transform '{self.kind}' is unknown; it can be log or power.")
        if self.scale <= 0 or self.exponent <= 0:
            raise DataError(
                f"A transform has scale {self.scale:g} and exponent {self.exponent:g}; make both "
                "positive."
            )
        if self.spread < 0 or (self.spread and self.lower is None):
            raise DataError(
                f"A transform has spread {self.spread:g} and lower {self.lower}: make the spread "
                "positive, and give the lower that values are spread below."
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
