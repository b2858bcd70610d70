"""What this machine computes in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset(["avx512_bf16", "amx_bf16", "bf16"])
"""Of x86 and ARM processors that multiply in bfloat16."""


@lru_cache(maxsize=1)
def cpu_type() -> Literal["bfloat16", "float32"]:
    """The number type in which this machine's CPU runs models.

    A processor without instructions for bfloat16 emulates it, a hundred times slower than float32.
    """
    try:
        flags = set(CPUINFO.read_text().split())
    except OSError:
        return "float32"
    return "bfloat16" if flags & BFLOAT16_FLAGS else "float32"


def model_type() -> torch.dtype:
    """The number type in which models are loaded here: bfloat16 on a GPU, else `cpu_type`."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else getattr(torch, cpu_type())
