"""Folders of published models, as `save_pretrained` writes them: local, or fetched from the hub.

A source is a local folder or a repository of the hub, `org/name` or `org/name@revision`. Only configurations,
vocabularies and safetensors are fetched, and no weights but safetensors are read: nothing here can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


class PretrainedError(Exception):
    """A published model that cannot be had or is not what it should be: which, why, what to do."""


def local(source: str) -> Path | None:
    """The folder that a source is; None where it is a repository of the hub. Raises PretrainedError for neither."""
    place = Path(source).expanduser()
    if place.is_dir():
        return place
    if not _REPOSITORY.fullmatch(source) or place.exists():
        raise PretrainedError(f"{source}: no such folder, and no repository of the hub (org/name) either")
    return None


def folder(source: str, parts: Sequence[str] = ()) -> Path:
    """The local folder of a published model, fetched from the hub if it is not a folder here.

    parts: the sub-folders that are needed; without any, the files at its top. Raises PretrainedError.
    """
    if here := local(source):
        return here
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise PretrainedError(f'{source}: huggingface_hub fetches it: pip install "talkreel[hub]"') from None
    name, _, revision = source.partition("@")
    patterns = [f"{part}/{file}" for part in parts for file in _FILES] if parts else list(_FILES)
    beyond = None if parts else ["*/*"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=beyond))
    except Exception as error:  # which ones depends on its version and on the network library it uses
        said = " ".join(str(error).split())
        raise PretrainedError(
            f"{source}: not a folder here, and not to be had from the hub ({type(error).__name__}: {said}); "
            "fetch it where there is a network, and give the folder's path as the source"
        ) from error


def part(root: Path, name: str) -> Path:
    """A part of a pipeline's folder, or the folder itself when it is that part."""
    return root / name if (root / name).is_dir() else root


def check(place: Path) -> None:
    """Raises PretrainedError where a folder cannot hold a network that is read here, without loading anything."""
    if not any(place.glob("*.safetensors")):
        raise PretrainedError(
            f"{place}: holds no .safetensors, and other weights are not read: they may carry code. "
            "Load it once where you trust it and `save_pretrained(…, safe_serialization=True)`"
        )


def network(kind: Any, place: Path, spare: Iterable[str] = (), **options: Any) -> Any:
    """A network of a class of transformers or diffusers with the weights of a folder, ready to use (`eval`).

    kind: the class. spare: names of weights that may be missing from the file, for they are not used.
    Raises PretrainedError when the folder does not hold all of the network's weights as safetensors.
    """
    check(place)
    try:
        loaded, report = kind.from_pretrained(
            str(place), use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise PretrainedError(f"{place}: cannot be read as {kind.__name__}: {said}") from error
    missing = sorted({str(key) for key in report["missing_keys"]} - set(spare))
    missing += sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise PretrainedError(f"{place}: {len(missing)} weights of {kind.__name__} are missing or misshapen: {some}")
    return loaded.eval().requires_grad_(False)
