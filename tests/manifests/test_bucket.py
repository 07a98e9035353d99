"""The same tables in a bucket."""

from __future__ import annotations

from manifests.schema import Solo
from manifests.store import ManifestStore
from tests.manifests.test_store import rows, solos


def test_tables_live_in_a_bucket(bucket):
    store = ManifestStore(f"{bucket}/output")
    for key in "abc":
        store.write(Solo, key, solos(key, 2))
    store.write(Solo, "b", solos("b", 3))
    expected = [("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0), ("b", 2.0), ("c", 0.0), ("c", 1.0)]
    assert rows(store) == expected
    assert store.compact() == 3
    store.write(Solo, "c", solos("c", 1))
    assert rows(ManifestStore(f"{bucket}/output")) == expected[:-1]
    assert store.read(Solo, "a") == solos("a", 2)
    store.forget(Solo, "a")
    assert rows(store) == expected[2:-1]
