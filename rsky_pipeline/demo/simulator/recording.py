"""Recorded networks: frames of a relay and of a labeler, documents, lists and repos.

The files are found beside the frames, each of them optional: `dids.json` (or `did_docs.json`),
`handles.json`, `listRepos.json` (pages), `cars/index.json` with its CARs, `labels.frames`. Any of
them may be compressed with zstd (suffix `.zst`), which needs the package zstandard.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsky_pipeline.atproto.errors import InvalidDataError
from rsky_pipeline.atproto.frame import decode_frame
from rsky_pipeline.demo.simulator.accounts import RepoStatus

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LENGTH_BYTES = 4
_SERVICES = {"#atproto_pds": 0, "#atproto_labeler": 1}


class RecordingError(Exception):
    """A recording cannot be read; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded network; frames with their numbers."""

    frames: Sequence[tuple[int, bytes]]
    labels: Sequence[tuple[int, bytes]]
    documents: dict[str, dict[str, Any]]
    handles: dict[str, str]
    repos: dict[str, RepoStatus]
    cars: dict[str, Path]

    def document(self, did: str, pds: str, labeler: str) -> dict[str, Any] | None:
        """Return a recorded document with its hosts replaced by ours."""
        recorded = self.documents.get(did)
        if recorded is None:
            return None
        services = [
            service | {"serviceEndpoint": (pds, labeler)[place]}
            if (place := _SERVICES.get("#" + service["id"].rpartition("#")[2])) is not None
            else service
            for service in recorded.get("service", [])
        ]
        return recorded | {"service": services}

    def status(self, did: str) -> RepoStatus | None:
        """Return the recorded status of a repo."""
        return self.repos.get(did)

    def statuses(self) -> list[RepoStatus]:
        """Return all recorded repos."""
        return list(self.repos.values())

    def car(self, did: str) -> bytes:
        """Return a recorded repo."""
        return self.cars[did].read_bytes()


def load_recording(frames: Path) -> Recording:
    """Read the frames and the files beside them. Raises RecordingError."""
    folder = frames.parent
    repos, cars = _repos(folder)
    labels = folder / "labels.frames"
    return Recording(
        frames=_numbered(frames),
        labels=_numbered(labels) if labels.exists() and labels != frames else (),
        documents=_json(folder, "dids.json") or _json(folder, "did_docs.json") or {},
        handles=_json(folder, "handles.json") or {},
        repos=repos,
        cars=cars,
    )


def split_frames(data: bytes) -> list[bytes]:
    """Cut a file of frames, each after its length as four bytes of either order.

    Raises ValueError if neither order fits the whole file.
    """
    for order in ("big", "little"):
        frames, position = [], 0
        while position + _LENGTH_BYTES <= len(data):
            start = position + _LENGTH_BYTES
            position = start + int.from_bytes(data[position:start], order)
            frames.append(data[start:position])
        if position == len(data):
            return frames
    raise ValueError("not a file of frames with their lengths (4 bytes, either byte order)")


def _numbered(path: Path) -> list[tuple[int, bytes]]:
    try:
        found = []
        for frame in split_frames(_read(path)):
            seq = getattr(decode_frame(frame), "seq", None)
            if seq is not None:
                found.append((seq, frame))
        return found
    except (ValueError, InvalidDataError) as error:
        raise RecordingError(f"{path}: {error}") from error


def _repos(folder: Path) -> tuple[dict[str, RepoStatus], dict[str, Path]]:
    """Return the repos of the list, with newer revs from the index of CARs."""
    repos = {
        item["did"]: RepoStatus(item["did"], item["head"], item["rev"], item.get("active", True),
                                item.get("status"))
        for page in _json(folder, "listRepos.json") or []
        for item in page["repos"]
    }  # fmt: skip
    cars: dict[str, Path] = {}
    for item in _json(folder, "cars/index.json") or []:
        status = item["status"]
        known = repos.get(item["did"])
        repos[item["did"]] = RepoStatus(
            item["did"], known.head if known else "", status.get("rev", known.rev if known else ""),
            status.get("active", True), status.get("status"),
        )  # fmt: skip
        if "file" in item:
            cars[item["did"]] = folder / "cars" / item["file"]
    return repos, cars


def _json(folder: Path, name: str) -> Any:
    for path in (folder / name, folder / f"{name}.zst"):
        if path.exists():
            try:
                return json.loads(_read(path))
            except ValueError as error:
                raise RecordingError(f"{path}: {error}") from error
    return None


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    if not data.startswith(_ZSTD_MAGIC):
        return data
    try:
        import zstandard
    except ImportError as error:
        raise RecordingError(f"{path} is compressed: install the package zstandard") from error
    try:
        plain: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise RecordingError(f"{path}: {error}") from error
    return plain
