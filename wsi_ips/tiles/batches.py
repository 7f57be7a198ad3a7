"""What a stream of tiles fills and who fills it: batches that are used again, and an executor without threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

__all__ = ["Here", "Ring"]


class Here(Executor):
    """Does at once what threads would do: for slides whose pixels are copied from memory in less than a thread's start."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call now; what is raised comes with the result."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)  # raised again by `result`, whatever it is
        return done


_IN_A_LIST = [np.zeros(0)]
_ALONE = sys.getrefcount(_IN_A_LIST[0])  # of an array that nothing but a list holds


class Ring:
    """Batches that are filled again and again, each as soon as nobody but the ring holds it or a view of it."""

    def __init__(self, shape: tuple[int, ...], size: int, allocate: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        self._shape, self._size, self._allocate = shape, size, allocate
        self._batches: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Lend a batch; more than the ring's size are made, and forgotten, while a consumer keeps them."""
        for i in range(len(self._batches)):
            if sys.getrefcount(self._batches[i]) == _ALONE:  # views, tensors and chunks would each count one more
                return self._batches[i]
        batch = self._allocate(self._shape)
        if len(self._batches) < self._size:
            self._batches.append(batch)
        return batch
