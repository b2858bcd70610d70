"""The entity table: every item and query as input embeddings of the LLM, computed once, looked up at request time.

One memory-mapped file (LMDB) that processes share. A key is the SHA-256 of an entity's text, a value its vectors in
bfloat16; what the vectors follow from (model, embedding model, adaptor) stands in the file too, and a table made for
another one is refused. The server's prefix cache is keyed by the bytes of the vectors: that they are computed once
keeps them the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lmdb
import torch
from torch import Tensor

from tools.adaptor import TrainedAdaptor, load_adaptor
from tools.embedding import Embedder, open_embedder
from tools.errors import ModelFilesError, OutputError
from tools.loading import load_once
from tools.models import weights_name

MOST_BYTES = 64 << 30
"""Address space of a table; the file takes only what is in it."""
PART = 4096
"""Entities that are embedded, projected and written at a time."""
VERSION_KEY = b"version"


@dataclass(frozen=True)
class EntitySource:
    """What a table is made from: settings, cheap to pass around."""

    directory: Path
    """Where tables are kept."""
    adaptor: Path
    embedding_model: str
    model: str
    """The LLM, by the name that requests ask for."""


@dataclass(frozen=True)
class TableVersion:
    """What the vectors of a table follow from."""

    model: str
    embedder: str
    adaptor: str
    """SHA-256 of its weights."""
    tokens: int
    width: int

    @property
    def digest(self) -> str:
        """Eight hex digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]


class EntityTable:
    """Vectors of entities; safe for threads, and for processes that share the file."""

    def __init__(self, path: Path, trained: TrainedAdaptor, embedder: Embedder) -> None:
        """Open a table, or begin one.

        Raises:
            ModelFilesError: it was made for another model, embedding model or adaptor.
            OutputError: the file can't be used.
        """
        shape = trained.adaptor.shape
        self.version = TableVersion(trained.model, embedder.name, trained.sha256, shape.tokens, shape.width)
        self._adaptor, self._embedder, self._path = trained.adaptor, embedder, path
        wanted = json.dumps(asdict(self.version)).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_file(path.resolve())
            with self._file.begin(write=True) as transaction:
                transaction.put(VERSION_KEY, wanted, overwrite=False)
                found = bytes(transaction.get(VERSION_KEY) or b"")
        except (OSError, lmdb.Error) as error:
            raise OutputError(
                f"{path} can't be used as an entity table ({error}); delete it or free its disk"
            ) from error
        if found != wanted:
            raise ModelFilesError(
                f"{path} was made for {found.decode()}, this is {wanted.decode()}: delete it, it is made again, "
                "or keep tables elsewhere"
            )

    def __len__(self) -> int:
        """Entities in it."""
        return int(self._file.stat()["entries"]) - 1

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Input embeddings of entities in their order, (n * tokens, width), bfloat16; new ones are added. Blocks.

        Raises:
            ModelFilesError: see `add`.
        """
        found = self._look_up(texts)
        if missing := [text for text, value in zip(texts, found, strict=True) if value is None]:
            self.add(missing)
            found = self._look_up(texts)
        content = b"".join(value for value in found if value is not None)
        return torch.frombuffer(bytearray(content), dtype=torch.bfloat16).view(-1, self.version.width)

    def add(self, texts: Sequence[str], report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Embed, project and keep the entities that are not there yet; `report` gets how many are done of how many.

        Raises:
            ModelFilesError: an embedding has other dimensions than the adaptor reads, or a number that is none; all
                others are kept.
            OutputError: the file can't be written; what was there before is kept.
        """
        found = self._look_up(texts)
        missing = list(dict.fromkeys(text for text, value in zip(texts, found, strict=True) if value is None))
        damaged: list[str] = []
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            values, sound = self._project(part)
            damaged += [text for text, is_sound in zip(part, sound, strict=True) if not is_sound]
            try:
                with self._file.begin(write=True) as transaction:
                    for text, value, is_sound in zip(part, values.view(torch.int16).numpy(), sound, strict=True):
                        if is_sound:
                            # Never another value in the place of one: what a prefix cache knows must stay the same.
                            transaction.put(_key(text), value.tobytes(), overwrite=False)
            except lmdb.Error as error:
                raise OutputError(f"{self._path} could not be written ({error}): is its disk full?") from error
            report(start + len(part), len(missing))
        if damaged:
            raise ModelFilesError(
                f"{len(damaged)} of {len(missing)} new entities have vectors with NaN or infinite numbers, such as "
                f"{damaged[0]!r}: the embedding model {self._embedder.name} or the adaptor is damaged; the others are "
                "kept"
            )

    def _look_up(self, texts: Sequence[str]) -> list[bytes | None]:
        with self._file.begin() as transaction:
            return [transaction.get(_key(text)) for text in texts]

    def _project(self, texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Vectors (n, tokens, width), bfloat16, and whether all numbers of each are numbers."""
        embeddings = torch.from_numpy(self._embedder.embed(texts))
        if embeddings.shape[1] != self._adaptor.shape.text:
            raise ModelFilesError(
                f"the adaptor reads embeddings of {self._adaptor.shape.text} dimensions, {self._embedder.name} gives "
                f"{embeddings.shape[1]}: set the embedding model that it was trained on, or train another adaptor"
            )
        with torch.inference_mode():
            projected: Tensor = self._adaptor(embeddings).to(torch.bfloat16)
        sound = embeddings.isfinite().all(dim=1) & projected.isfinite().flatten(1).all(dim=1)
        return projected, sound.tolist()


@load_once(maxsize=64)
def _open_file(path: Path) -> lmdb.Environment:
    """LMDB takes one opening of a file in a process, by whatever path."""
    return lmdb.open(str(path), map_size=MOST_BYTES, subdir=False, readahead=False)


@load_once(maxsize=4)
def open_entities(source: EntitySource) -> EntityTable:
    """The table of an adaptor, one a process. Blocks.

    Raises:
        ModelFilesError: there is no adaptor, or it is one for another model or embedding model.
    """
    embedder = open_embedder(source.embedding_model)
    trained = load_adaptor(source.adaptor, weights_name(source.model), embedder.name)
    return EntityTable(source.directory / f"entities-{trained.sha256[:12]}.lmdb", trained, embedder)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
