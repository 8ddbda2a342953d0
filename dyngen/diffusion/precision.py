"""Where lower precision pays."""

from __future__ import annotations

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 convolutions, and does not imitate them.

    A CPU needs AVX-512, or bf16 instructions on ARM: without, PyTorch falls back to loops that take
    many times as long as single precision.
    """
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return bool(supported())


@cache
def tell_of_single_precision() -> None:
    """Log, once, that bf16 was asked for where it is not computed."""
    log.info("this CPU has no bf16 convolutions: single precision, in their place, is far faster")
