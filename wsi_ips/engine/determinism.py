"""A process that computes the same bits each time: thread counts, kernels, number types."""

from __future__ import annotations

import os

import cv2
import torch

__all__ = ["make_deterministic"]


def make_deterministic(threads: int) -> None:
    """Fix thread counts and choose repeatable kernels."""
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
    cv2.setNumThreads(1)  # reader threads are the parallelism
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
