"""What all tests share: the real footage, where it lies beside the repo, and one Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of real footage beside the repo; a test that wants it is skipped, by name, where there is none."""
    folder = ROOT.parent / "shared" / "footage"
    if not folder.is_dir():
        pytest.skip("../shared/footage is not there")
    return folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A fresh bucket of a real S3 server on loopback, as the URI that pyarrow opens."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                environment.setenv(name, "test")
            environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
            _, port = server.get_host_and_port()
            endpoint = f"http://127.0.0.1:{port}"
            boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="films")
            environment.setenv("AWS_ENDPOINT_URL", endpoint)
            environment.setenv("AWS_REGION", "us-east-1")
            yield "s3://films"
    finally:
        server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
