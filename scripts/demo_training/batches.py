"""Batches of packed token rows, made by worker processes while the model trains."""

from __future__ import annotations

import multiprocessing as mp
import queue
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LENGTHS = (160, 288, 448, 896)


@dataclass
class Row:
    """Token ids, and which of them the model learns to say."""

    ids: list[int]
    learn: list[int]


def bucketed(rows: Iterator[Row], tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Group rows of about the same length; every batch has about the same number of tokens."""
    waiting: dict[int, list[Row]] = {length: [] for length in LENGTHS}
    for row in rows:
        length = next((n for n in LENGTHS if n >= len(row.ids)), None)
        if length is None:
            continue
        waiting[length].append(row)
        if len(waiting[length]) == max(1, tokens // length):
            yield _pad(waiting[length], length)
            waiting[length] = []


def _pad(rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(rows), length), dtype=np.int16)
    learn = np.zeros((len(rows), length), dtype=bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        learn[index, : len(row.ids)] = row.learn
    return ids, learn


Produce = Callable[[Any, random.Random], Iterator[Any]]


def _work(produce: Produce, context: Any, seed: int, out: Any) -> None:
    for batch in produce(context, random.Random(seed)):
        out.put(batch)


class Stream:
    """An endless stream of batches from ``workers`` processes."""

    def __init__(self, produce: Produce, context: Any, seed: int, workers: int) -> None:
        spawn = mp.get_context("spawn")
        self.queue: Any = spawn.Queue(maxsize=64)
        self.processes = [
            spawn.Process(target=_work, args=(produce, context, seed * 1000 + n, self.queue), daemon=True)
            for n in range(workers)
        ]
        for process in self.processes:
            process.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield self.queue.get(timeout=120)
            except queue.Empty as error:
                raise RuntimeError("the workers that make the training data have stopped") from error

    def close(self) -> None:
        """Stop the workers."""
        for process in self.processes:
            process.terminate()
