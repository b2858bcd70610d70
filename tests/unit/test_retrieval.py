"""The vectors of a catalogue: embedded once, kept where that can be."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from tools.dataset import Dataset
from tools.embedding import Embeddings
from tools.retrieval import embed_catalog


class Slow:
    """An embedder that counts its calls, and takes so long that another thread would come in between."""

    name = "slow"

    def __init__(self) -> None:
        self.calls = 0
        self._together = threading.Barrier(2)

    def embed(self, texts: Sequence[str], progress: object = None) -> Embeddings:
        self.calls += 1
        try:
            self._together.wait(0.3)
        except threading.BrokenBarrierError:
            self._together.reset()
        return np.ones((len(texts), 2), dtype=np.float32)


def test_threads_that_come_together_embed_a_catalogue_once(small: Dataset) -> None:
    embedder = Slow()
    with ThreadPoolExecutor(2) as pool:
        first, second = [pool.submit(embed_catalog, small, embedder).result for _ in range(2)]
        assert np.array_equal(first()[0], second()[0]) and np.array_equal(first()[1], second()[1])
    assert embedder.calls == 2  # titles, leaves
    assert len(list((small.directory / "index").iterdir())) == 2


def test_vectors_that_can_not_be_kept_are_used_all_the_same(small: Dataset) -> None:
    (small.directory / "index").write_text("a file, where the directory should be")
    with structlog.testing.capture_logs() as events:
        titles, _ = embed_catalog(small, Slow())
    assert titles.shape == (8, 2)
    assert {(event["event"], event["log_level"]) for event in events} == {("index_not_kept", "warning")}
