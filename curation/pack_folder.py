"""Whose a folder of shards is: this job's, to go on with; nobody's, to be taken; or another's, to be left alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from curation import shards
from curation.pack_job import Job
from curation.place import STAGING, Place, ShardError
from manifests.schema import Failure
from manifests.store import ManifestStore

_ABOUT = f"{STAGING}/about.json"


def begun(place: Place, job: Job) -> bool:
    """Whether the folder holds work of this very job.

    What was begun with other settings counts for nothing as long as no shard of it is finished (no clip, of a tree).
    Raises ShardError where one is, or where another's files lie.
    """
    there = _there(place)
    tars = sorted(name for name in place.files() if name.endswith(".tar"))
    if there is None:
        if left := tars + [name for name in place.files() if name.endswith(".json")]:
            raise ShardError(
                f"{place.name}: holds {left[0]}, which this job did not make: shards=… names another folder"
            )
        return False
    if there["version"] == job.about["version"]:
        return True
    if there["settings"]["format"] == "hallo3":
        finished = bool(there.get("clips")) or bool(place.files(f"{STAGING}/samples", recursive=True))
    else:
        finished = bool(tars)
    if finished:
        raise ShardError(
            f"{place.name}: holds shards that were packed otherwise ({_odds(there, job.about)}): shards=… names "
            "another folder, or delete it"
        )
    return False


def _there(place: Place) -> dict[str, Any] | None:
    """What was packed, or begun, in the folder; None: nothing."""
    return shards.read_index(place) or json.loads(place.read(_ABOUT) or b"null")


def _odds(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what two jobs differ."""
    odd = [name for name, value in wanted["settings"].items() if there["settings"].get(name) != value]
    if odd:
        return ", ".join(odd)
    if there["weights"] != wanted["weights"]:
        return "weights"
    if there.get("revision") != wanted["revision"]:
        return "by another version of talkreel"
    return "the selection was made anew"


def claim(place: Place, job: Job) -> None:
    """Make the folder this job's, which has nothing finished in it."""
    if there := _there(place):
        print(
            f"{place.name}: begun with other settings ({_odds(there, job.about)}), none of it finished: begun anew",
            file=sys.stderr,
        )
    place.delete(shards.INDEX)
    place.clear(STAGING)
    place.publish(_ABOUT, json.dumps(job.about).encode())


def failures(place: Place) -> dict[str, dict[str, Any]]:
    """What failed in this and earlier runs, by clip."""
    if index := shards.read_index(place):
        return {row["clip_id"]: row for row in index["failures"]}
    rows = ManifestStore(f"{place.name}/{STAGING}").arrow(Failure).to_pylist()
    kept = ("path", "error", "message")
    return {row["key"]: {"clip_id": row["key"], **{name: row[name] for name in kept}} for row in rows}


def reopen(place: Place, job: Job) -> None:
    """Go back from an index to its parts, so that shards may be added."""
    if shards.read_index(place):
        if job.config.format == "hallo3":
            from curation import hallo3

            for shard in (shard for group in job.groups for shard in group.shards):
                hallo3.unlisted(place, shard)
        for written in shards.finished(place).values():
            shards.write_part(place, written)
        if nothing := shards.nothing_kept(place):
            shards.stage_nothing(place, lambda: nothing)
        place.publish(_ABOUT, json.dumps(job.about).encode())
        place.delete(shards.INDEX)
