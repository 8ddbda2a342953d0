"""Networks that see a frame at several places of their grid, and what they say on average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Shift = tuple[int, int]


def spun(function: Callable[..., Any], shifts: Sequence[Shift]) -> Callable[..., Any]:
    """A function of maps, averaged over shifts of them: cycle spinning.

    (Coifman and Donoho 1995, Translation-invariant de-noising, section 2.) A network that folds
    patches, or halves the resolution, says another thing of a frame that is moved by less than
    these: an error of its own, which the mean over all such shifts has not.

    Args:
        function: Maps (B, ..., H, W), among its arguments with whatever else, to a map, or to a
            mapping of names to such. Arguments of fewer than three axes are not maps.
        shifts: Cells that everything is moved by along y and x, and what comes of it back. Both
            axes must be periodic wherever they are not 0.
    """
    if not described(shifts):
        return function

    def average(*args: Any, **kwargs: Any) -> Any:
        found = []
        for shift in shifts:
            moved = function(
                *(_moved(value, shift) for value in args),
                **{name: _moved(value, shift) for name, value in kwargs.items()},
            )
            back = (-shift[0], -shift[1])
            if isinstance(moved, Mapping):
                found.append({name: _moved(value, back) for name, value in moved.items()})
            else:
                found.append(_moved(moved, back))
        if isinstance(found[0], Mapping):
            return {name: _mean(each[name] for each in found) for name in found[0]}
        return _mean(found)

    return average


def check_shifts(shifts: Sequence[Sequence[int]], model: Any) -> list[Shift]:
    """The shifts as pairs.

    Args:
        shifts: Cells along y and x.
        model: If it has modules, their convolutions say which axes are periodic.

    Raises:
        ValueError: If there is none, one is no pair, or one moves frames along an axis that ends.
    """
    pairs = [(int(shift[0]), int(shift[1])) for shift in shifts if len(shift) == 2]
    if not pairs or len(pairs) < len(shifts):
        raise ValueError(
            f"shifts is {[list(shift) for shift in shifts]}; give one or more pairs of cells, "
            "along y and x, such as [[0, 0], [1, 1]]."
        )
    ends = {
        axis: edges[axis]
        for module in getattr(model, "modules", tuple)()
        if isinstance(edges := getattr(module, "boundary", None), tuple)
        for axis in (0, 1)
        if edges[axis] != "periodic"
    }
    for axis, edge in ends.items():
        if any(pair[axis] for pair in pairs):
            raise ValueError(
                f"shifts is {[list(pair) for pair in pairs]}, but {'yx'[axis]} is not periodic to "
                f"the networks ({edge}): give 0 for it in each pair."
            )
    return pairs


def described(shifts: Sequence[Shift]) -> dict[str, list[list[int]]]:
    """The shifts as part of a sampler's description; nothing where frames stay in place."""
    pairs = [list(shift) for shift in shifts]
    return {} if pairs == [[0, 0]] else {"shifts": pairs}


def _moved(value: Any, shift: Shift) -> Any:
    is_map = isinstance(value, Tensor) and value.ndim > 2
    return value.roll(shift, dims=(-2, -1)) if is_map and any(shift) else value


def _mean(values: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).mean(0)
