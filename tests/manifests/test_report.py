"""The report from manifests: accounts that add up, failures grouped, previews, and a page that is safe to open."""

from __future__ import annotations

import html.parser
import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from curation.funnel import funnel
from manifests import recipe, selection
from manifests.accounting import account, reason, source_sets, troubles
from manifests.contact_sheet import previews, sample
from manifests.distributions import metrics, values
from manifests.overview import by_recipe, by_selection, limits, overview, read_clips
from manifests.report_page import Report, render
from manifests.schema import Clip, Failure, Loss, Video
from manifests.store import ManifestStore, publish
from model.media import frames, probe
from tests.manifests.made_up import LACKING, SETS, failure, filmed, manifests, row

ROOT = Path(__file__).resolve().parents[2]
BOUNDS = ["lip_sync>=0.5", "binding=speaks", "faces_max=1", "abs(lip_offset)<=3", "luminance>80"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ManifestStore:
    return manifests(tmp_path_factory.mktemp("made"), 500)


def shown(store: ManifestStore, bounds: list[str] | None = None, **options) -> Report:
    asked = recipe.asked(bounds) if bounds else None
    clips = read_clips(store, asked)
    return overview(store, clips, by_recipe(store, clips, asked) if asked else None, **{"pictures": 0, **options})


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "manifests/report.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# Accounts


def test_the_curation_funnel_is_the_one_that_the_job_prints(store):
    found, printed = account(store, read_clips(store)), funnel(store)
    assert found.lost == pytest.approx(dict(printed.lost))
    for name in ("files", "unusable", "duplicates", "unfinished", "clips"):
        assert getattr(found, name) == getattr(printed, name), name
    assert (found.seconds, found.clip_seconds) == pytest.approx((printed.seconds, printed.clip_seconds))


def test_losses_and_clips_add_up_to_what_was_looked_at(store):
    found = account(store, read_clips(store))
    whole = found.unfinished_seconds + sum(found.lost.values()) + found.clip_seconds
    assert whole == pytest.approx(found.seconds)


def test_files_that_failed_and_files_that_were_not_finished_are_told_apart(tmp_path):
    store = manifests(tmp_path, 20, videos=2)
    store.write(
        Video, "late", [row(Video, source_id="late", video_id="x", path="/late.mp4", status="failed", duration=9.0)]
    )
    store.write(Video, "copy", [row(Video, source_id="copy", video_id="y", path="/copy.mp4", status="duplicate")])
    store.write(Loss, "x", [row(Loss, video_id="x", start=0.0, end=5.0, reason="no face")])
    failure(store, 1, "cannot be read")
    failure(store, 2, "a clip of it crashed", path="/footage/00000.mp4")
    found, printed = account(store, read_clips(store)), funnel(store)
    assert (found.unusable, found.duplicates, found.unfinished, found.unfinished_seconds) == (1, 1, 1, 9.0)
    assert (found.files, found.seconds) == (printed.files, pytest.approx(printed.seconds))


def test_hours_by_source_set_and_source_add_up_to_all_clips(store):
    clips = read_clips(store)
    chosen_N = np.arange(clips.num_rows) % 3 == 0
    sets = source_sets(store, clips, chosen_N, shown=1)
    durations = clips["duration"].to_numpy()
    assert {found.whole.name for found in sets} == set(SETS)
    assert sum(found.whole.clip_seconds for found in sets) == pytest.approx(durations.sum())
    assert sum(found.whole.chosen_seconds for found in sets) == pytest.approx(durations[chosen_N].sum())
    assert [len(found.sources) + found.others for found in sets] == [3, 3, 2]
    assert sets[0].sources[0].name.startswith("Film ")


def test_failures_that_differ_only_in_file_and_number_are_one_group(tmp_path):
    store = ManifestStore(str(tmp_path))
    for number in range(5):
        name = f"/footage/broken{number}.mp4"
        failure(store, number, f"{name}: frame {number * 7} of {name} is damaged", log="moov atom not found")
    failure(store, 9, "no space left on device")
    found = troubles(store)
    assert [(group.message, group.count) for group in found] == [
        ("frame # of … is damaged", 5),
        ("no space left on device", 1),
    ]
    assert len(found[0].examples) == 3 and found[0].examples[0].log == "moov atom not found"


@pytest.mark.parametrize(
    "message, grouped",
    [
        ("s3://films/a b.mp4: s3://films/a b.mp4 took 12.5 s", "… took # s"),
        ("cannot open /tmp/x/y.mp4: Invalid data", "cannot open …: Invalid data"),
        ("clip 0123456789abcdef: -3 frames", "clip #: # frames"),
        ("moov atom not found", "moov atom not found"),
    ],
)
def test_what_names_one_file_is_taken_out_of_a_message(message, grouped):
    assert reason(row(Failure, message=message, path="s3://films/a b.mp4")) == grouped


# What is chosen


def test_sliders_and_rules_together_keep_what_the_recipe_chooses(store):
    clips = read_clips(store)
    chosen = by_recipe(store, clips, recipe.asked(BOUNDS))
    edges, rules = limits(clips, chosen)
    assert 0 < chosen.kept_N.sum() < clips.num_rows
    assert chosen.kept_N.sum() == chosen.funnel.chosen_clips
    assert [rule.text for rule in rules] == ["binding=speaks"]
    assert {edge.column for edge in edges} == {"lip_sync", "faces_max", "lip_offset", "luminance"}
    kept_N = ~np.any([rule.broken_N for rule in rules], axis=0)
    known = {metric.name: metric for metric in metrics()}
    for edge in edges:
        numbers_N = values(clips, known[edge.column])
        compare = {">=": np.greater_equal, ">": np.greater, "<=": np.less_equal, "<": np.less}[edge.sign]
        kept_N &= compare(numbers_N, edge.value)
    assert (kept_N == chosen.kept_N).all()


def test_a_selection_that_dropped_more_than_its_bounds_has_a_rule_for_the_rest(store, tmp_path):
    made = selection.choose(store, recipe.asked(["lip_sync>=0.5"]), name="half")
    fewer = selection.Selection("half", made.recipe, made.funnel, made.clips.slice(0, 100), made.made)
    clips = read_clips(store)
    chosen = by_selection(clips, fewer)
    edges, rules = limits(clips, chosen)
    assert len(edges) == 1 and [rule.text for rule in rules] == ["not in half"]
    assert rules[0].broken_N.sum() == made.clips.num_rows - 100


def test_clips_of_a_selection_that_are_gone_are_said_to_be(store):
    made = selection.choose(store, recipe.asked(["lip_sync>=0.5"]), name="half")
    clips = read_clips(store)
    chosen = by_selection(clips.slice(50), made)
    assert re.search(r"\d+ of its clips are no longer in the manifests", " ".join(chosen.notes))


def test_clips_that_are_not_scored_are_no_choice(tmp_path):
    store = manifests(tmp_path, 30, videos=1)
    clips = store.arrow(Clip).to_pylist()
    for clip in clips[:10]:
        clip["status"] = None
    store.write(Clip, clips[0]["video_id"], [Clip(**clip) for clip in clips])
    found = read_clips(store)
    chosen = by_recipe(store, found, recipe.asked(["duration>0"]))
    _, rules = limits(found, chosen)
    assert [(rule.text, rule.broken_N.sum()) for rule in rules] == [("status=scored", 10)]


# Pictures


def test_a_sample_is_half_kept_and_half_dropped_and_spread_along_the_metric():
    values_N = np.random.default_rng(3).permutation(1000).astype(float)
    kept_N = values_N >= 800
    chosen = sample(values_N, kept_N, 40, seed=1)
    assert len(set(chosen)) == 40 and kept_N[chosen].sum() == 20
    for group, low, high in ((kept_N, 800, 1000), (~kept_N, 0, 800)):
        found = np.sort(values_N[[index for index in chosen if group[index]]])
        width = (high - low) / 20
        assert ((found - low) // width).tolist() == list(range(20))


def test_a_sample_is_drawn_by_its_seed():
    values_N = np.random.default_rng(3).uniform(size=500)
    kept_N = values_N > 0.3
    assert sample(values_N, kept_N, 30, seed=1) == sample(values_N, kept_N, 30, seed=1)
    assert sample(values_N, kept_N, 30, seed=1) != sample(values_N, kept_N, 30, seed=2)


@pytest.mark.parametrize(
    "kept, dropped, count, expected", [(3, 100, 20, 20), (100, 3, 20, 20), (4, 5, 20, 9), (0, 0, 5, 0)]
)
def test_where_one_half_is_short_the_other_gives_more(kept, dropped, count, expected):
    kept_N = np.arange(kept + dropped) < kept
    values_N = np.full(kept + dropped, math.nan)
    chosen = sample(values_N, kept_N, count)
    assert len(chosen) == len(set(chosen)) == expected


def test_a_preview_is_a_film_with_sound_and_the_face_where_it_was(tmp_path):
    store = filmed(tmp_path / "out", tmp_path, clips=1)
    (preview,) = previews(store, store.arrow(Clip))
    (tmp_path / "preview.mp4").write_bytes(preview.film)
    facts = probe(tmp_path / "preview.mp4")
    assert facts.video is not None and facts.audio is not None
    assert (facts.video.width, facts.video.height) == preview.size
    assert facts.video.fps == Fraction(25, 2) and facts.video.frames == len(preview.bound) == 37
    # The clip is 80 frames: the middle 74 of them, every second one, begin with frame 3.
    left, top, right, bottom, yaw, pitch, roll = preview.bound[0]
    assert (left, top, right, bottom) == pytest.approx((63 / 320, 40 / 180, 143 / 320, 120 / 180), abs=1e-3)
    assert (yaw, pitch, roll) == (round(1.5), 0, 0)
    assert preview.bound[1][0] == pytest.approx(65 / 320, abs=1e-3)
    film_shades = [image.mean() for image in _images(tmp_path / "preview.mp4")]
    source_shades = [image.mean() for image in _images(tmp_path / "talk.mp4")]
    assert film_shades == pytest.approx(source_shades[3:77:2], abs=3)


def _images(path: Path) -> list[np.ndarray]:
    facts = probe(path)
    assert facts.video is not None
    from model.media import Span

    return list(frames(path, Span(Fraction(0), facts.video.duration), facts.video.fps))


def test_footage_that_is_gone_or_not_the_same_any_more_says_so(tmp_path):
    store = filmed(tmp_path / "out", tmp_path, clips=1)
    film = tmp_path / "talk.mp4"
    film.write_bytes(film.read_bytes() + b"more")
    (preview,) = previews(store, store.arrow(Clip))
    assert not preview.film and preview.why == "the footage has changed since it was curated"
    film.unlink()
    (preview,) = previews(store, store.arrow(Clip))
    assert not preview.film and preview.why == "the footage is not there"
    assert "the footage is not there" in render(shown(store, pictures=3))


def test_faces_are_found_in_packs_as_they_are_in_parts(tmp_path):
    store = filmed(tmp_path / "out", tmp_path, clips=3)
    before = list(previews(store, store.arrow(Clip), moving=False))
    store.compact()
    after = list(previews(store, store.arrow(Clip), moving=False))
    assert [preview.bound for preview in after] == [preview.bound for preview in before]
    assert before[0].bound[0] is not None and len(before[0].bound) == 1


# The page


class Elements(html.parser.HTMLParser):
    """Counts a page's elements and keeps the attributes of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


def facts_of(page: str) -> dict:
    return json.loads(page.split('id="facts">')[1].split("</script>")[0])


def test_a_page_shows_both_funnels_and_says_why_columns_are_missing(store):
    page = render(shown(store, BOUNDS))
    words = Elements(page).words
    for text in ("no face", "no speech", "lip_sync>=0.5", "abs(lip_offset)<=3", "sync_c", LACKING.partition(": ")[2]):
        assert text in words, text
    assert "sync_c" not in {metric["name"] for metric in facts_of(page)["metrics"]}


def test_the_papers_distributions_come_first(tmp_path):
    page = render(shown(manifests(tmp_path, 60, synced=True)))
    names = [metric["name"] for metric in facts_of(page)["metrics"]]
    assert names[:4] == ["sync_c", "sync_d", "face_rotation", "face_ratio"]


def test_names_from_outside_are_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&.mp4"
    store = filmed(tmp_path / "out", tmp_path)
    clips = [vars(clip) for clip in store.read(Clip, f"{7:064x}")]
    hurt = {"path": f"/{evil}", "source_set": evil, "person": evil, "unmeasured": [f"sync_c: {evil}"]}
    store.write(Clip, f"{7:064x}", [Clip(**{**clip, **hurt}) for clip in clips])
    videos = vars(store.read(Video, f"{7:016x}")[0])
    store.write(Video, f"{7:016x}", [Video(**{**videos, "title": evil, "path": f"/{evil}", "source_set": evil})])
    store.write(Loss, f"{7:064x}", [row(Loss, video_id=f"{7:064x}", start=0.0, end=1.0, reason=evil)])
    failure(store, 1, f"{evil} cannot be read</script>", path=f"/{evil}2", log=f"</pre>{evil}")
    clean = Elements(render(shown(filmed(tmp_path / "clean", tmp_path, name="b.mp4"), pictures=3))).found
    page = Elements(render(shown(store, pictures=3)))
    assert evil in page.words
    count = [tag for tag, _ in page.found].count
    assert (count("script"), count("img")) == ([tag for tag, _ in clean].count("script"), 0)
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]


def test_nothing_on_the_page_is_fetched(store):
    page = render(shown(store, BOUNDS))
    assert "default-src 'none'" in page
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "iframe", "object", "embed")
        assert not {"src", "srcset"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")


def test_the_same_manifests_give_the_same_page(tmp_path):
    store = filmed(tmp_path / "out", tmp_path)
    assert render(shown(store, pictures=3)) == render(shown(store, pictures=3))


def test_an_output_without_clips_still_has_a_page(tmp_path):
    store = ManifestStore(str(tmp_path))
    store.write(Video, "a", [row(Video, source_id="a", video_id="v", path="/a.mp4", status="proposed", duration=10.0)])
    store.write(Loss, "v", [row(Loss, video_id="v", start=0.0, end=10.0, reason="no face")])
    page = render(shown(store, pictures=5))
    assert "There are no clips" in page and "no face" in page


# The command


def test_the_command_writes_a_page_and_says_where(tmp_path):
    filmed(tmp_path / "out", tmp_path)
    done = run(f"output={tmp_path / 'out'}", "where=[face_ratio>=0.35]", "clips=2")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert str(tmp_path / "out/report.html") in done.stdout
    assert len(facts_of(page)["cards"]) == 2 and facts_of(page)["edges"][0]["column"] == "face_ratio"


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["selection=nothing"], 1, "no selection 'nothing'"),
        (["recipe=latentsink"], 2, "did you mean 'latentsync'"),
        (["selection=a", "recipe=latentsync"], 2, "its own bounds"),
        (["page=/proc/none/report.html"], 1, "could not be written"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(tmp_path, arguments, status, words):
    manifests(tmp_path, 20, videos=2)
    done = run(f"output={tmp_path}", "clips=0", *arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_output_without_manifests_is_named(tmp_path):
    done = run(f"output={tmp_path / 'nowhere'}")
    assert done.returncode == 1 and "no manifests there" in done.stderr


def test_a_report_can_live_in_a_bucket(bucket, tmp_path):
    made = manifests(tmp_path, 40, videos=2)
    store = ManifestStore(f"{bucket}/report")
    for table in (Clip, Video, Loss):
        for part in Path(made.folder(table)).glob("*.parquet"):
            publish(store.filesystem, f"{store.folder(table)}/{part.name}", part.read_bytes())
    done = run(f"output={bucket}/report", "clips=0")
    assert done.returncode == 0, done.stderr
    with store.filesystem.open_input_stream("films/report/report.html") as stream:
        assert facts_of(stream.read().decode())["clips"] == 40


def test_the_sheets_facts_are_the_manifests_numbers(tmp_path):
    store = filmed(tmp_path / "out", tmp_path)
    cards = facts_of(render(shown(store, pictures=3)))["cards"]
    rows = {clip["clip_id"]: clip for clip in store.arrow(Clip).to_pylist()}
    assert len(cards) == 3
    for card in cards:
        assert card["values"]["lip_sync"] == pytest.approx(rows[card["clip_id"]]["lip_sync"])
        assert "sync_c" not in card["values"]
