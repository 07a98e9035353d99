"""The report in a real browser: sliders, previews, sorting, narrow and dark windows, thousands of clips."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests import recipe
from manifests.overview import by_recipe, overview, read_clips
from manifests.report_page import render
from manifests.schema import Clip, Video
from manifests.store import ManifestStore
from tests.manifests.chromium import Page, browser, executable
from tests.manifests.made_up import filmed, manifests

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium is installed")

BOUNDS = ["lip_sync>=0.5", "binding=speaks", "faces_max=1", "abs(lip_offset)<=3", "luminance>80.25", "faces_seen>0"]
MOVE = """(() => {
  const node = document.querySelector(`[data-metric="%s"] [aria-label^="%s"]`);
  node.value = %s;
  node.dispatchEvent(new Event("input", {bubbles: true}));
})()"""
SETTLED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as tab:
        tab.size(1280, 900)
        yield tab
        assert tab.complaints == []


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> ManifestStore:
    return manifests(tmp_path_factory.mktemp("many"), 4_000, videos=6)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> ManifestStore:
    folder = tmp_path_factory.mktemp("few")
    return filmed(folder / "out", folder)


def write(store: ManifestStore, bounds: list[str] | None = None, pictures: int = 0) -> Path:
    asked = recipe.asked(bounds) if bounds else None
    clips = read_clips(store, asked)
    chosen = by_recipe(store, clips, asked) if asked else None
    path = Path(store.output, "report.html")
    path.write_text(render(overview(store, clips, chosen, pictures)))
    return path


def counts(page: Page) -> tuple[int, str]:
    """Clips and time that the bar says are kept."""
    page.ask(SETTLED)
    text = page.ask("document.getElementById('kept').textContent")
    found = re.fullmatch(r"([\d,]+) of [\d,]+ clips, (.*) of .* \([\d.]+ %\)", text)
    assert found, text
    return int(found[1].replace(",", "")), found[2]


def asked_by(page: Page) -> list[str]:
    """The bounds of the command that the page says is the same."""
    command = page.ask("document.getElementById('command').textContent")
    assert command.startswith("python manifests/filter.py output=")
    found = re.search(r" 'where=\[(.*)\]'$", command)
    return found[1].split(",") if found else []


def expected(store: ManifestStore, bounds: list[str]) -> tuple[int, str]:
    """What these bounds keep, counted over the Parquet."""
    clips = read_clips(store)
    kept_N = by_recipe(store, clips, recipe.asked(bounds)).kept_N if bounds else np.ones(clips.num_rows, bool)
    seconds = float(clips["duration"].to_numpy()[kept_N].sum())
    if seconds < 120:
        return int(kept_N.sum()), f"{seconds:.1f} s"
    return int(kept_N.sum()), f"{seconds / 60:.1f} min" if seconds < 7200 else f"{round(seconds / 3600, 1):g} h"


def test_the_page_begins_with_what_the_recipe_keeps(page, many):
    page.open(write(many, BOUNDS))
    assert counts(page) == expected(many, BOUNDS)
    assert counts(page)[0] > 0
    assert set(asked_by(page)) == {
        "binding=speaks",
        "lip_sync>=0.5",
        "faces_max>=1",
        "faces_max<=1",
        "lip_offset>=-3",
        "lip_offset<=3",
        "luminance>80.25",
        "faces_seen>0",
    }


def test_without_a_choice_the_page_keeps_everything(page, many):
    page.open(write(many))
    assert counts(page) == expected(many, []) and asked_by(page) == []


def test_moved_sliders_keep_what_the_same_bounds_keep_over_the_parquet(page, many):
    page.open(write(many, BOUNDS))
    names = page.ask("[...document.querySelectorAll('[data-metric]')].map((node) => node.dataset.metric)")
    dice = random.Random(4)
    for move in range(12):
        name, side = dice.choice(names), dice.choice(["least", "greatest"])
        if name == "face_rotation":
            side = "greatest"
        last = page.ask(f"Number(document.querySelector('[data-metric=\"{name}\"] input').max)")
        # Near its end, so that something is left after many of them.
        place = dice.randint(0, last // 4) if side == "least" else dice.randint(last - last // 4, last)
        page.ask(MOVE % (name, side, place))
        page.ask(SETTLED)
        assert counts(page) == expected(many, asked_by(page)), (move, name, side, place)
    assert len(asked_by(page)) > 9


def test_a_slider_set_free_again_gives_all_clips_back(page, many):
    page.open(write(many))
    page.ask(MOVE % ("face_ratio", "least", 200))
    assert counts(page)[0] < 3900
    page.ask(MOVE % ("face_ratio", "least", -1))
    assert counts(page)[0] == 4_000


def test_the_keyboard_moves_a_slider_by_one_step(page, many):
    page.open(write(many))
    page.ask('document.querySelector(\'[data-metric="face_ratio"] [aria-label^="least"]\').focus()')
    for _ in range(3):
        page.press("ArrowRight", 39)
    bounds = asked_by(page)
    assert len(bounds) == 1 and bounds[0].startswith("face_ratio>=")
    assert counts(page) == expected(many, bounds)
    spoken = "document.activeElement.getAttribute('aria-valuetext')"
    assert page.ask(spoken) == f"≥ {bounds[0].partition('>=')[2]}"


def test_the_ends_of_a_bound_do_not_pass_each_other(page, many):
    page.open(write(many))
    page.ask(MOVE % ("face_ratio", "greatest", 100))
    page.ask(MOVE % ("face_ratio", "least", 300))
    ends = page.ask("[...document.querySelectorAll('[data-metric=\"face_ratio\"] input')].map((n) => Number(n.value))")
    assert ends == [100, 100]
    assert counts(page) == expected(many, asked_by(page))


def test_a_rule_is_switched_off_and_the_recipe_comes_back(page, many):
    page.open(write(many, BOUNDS))
    before = counts(page)
    page.point("#rules input", click=True)
    assert "binding=speaks" not in asked_by(page) and counts(page) == expected(many, asked_by(page))
    page.ask(MOVE % ("lip_sync", "least", -1))
    assert counts(page)[0] > before[0]
    page.point("#reset", click=True)
    assert counts(page) == before


def test_the_page_can_show_one_source_set_or_all_side_by_side(page, many):
    page.open(write(many))
    words = page.ask(
        "[...document.querySelectorAll('#sets label')].map((node) => node.textContent.trim().split(' ')[0])"
    )
    assert words[0] == "all" and set(words[1:-1]) == {"hdtf", "youtube", "movie"} and words[-1] == "side"
    pixels = "document.querySelector('[data-metric=\"face_ratio\"] canvas').toDataURL()"
    pictures = []
    for place in (1, 2, 5):
        page.point(f"#sets label:nth-of-type({place})", click=True)
        page.ask(SETTLED)
        pictures.append(page.ask(pixels))
    assert len(set(pictures)) == 3


def test_a_preview_plays_when_the_mouse_is_on_it_and_stops_when_it_leaves(page, few):
    page.open(write(few, pictures=3))
    shade = "[...document.querySelector('.card canvas').getContext('2d').getImageData(20, 300, 1, 1).data]"
    page.ask("document.querySelector('.card').scrollIntoView({block: 'center'})")
    page.wait(f"{shade}[3] === 255")  # its first picture
    first = page.ask(shade)[0]
    page.point(".card .screen")
    page.wait("document.querySelector('.card').classList.contains('playing')")
    page.wait(f"{shade}[0] > {first} + 15")  # the film grows brighter
    page.point("h1")
    page.wait("!document.querySelector('.card.playing')")
    page.wait(f"Math.abs({shade}[0] - {first}) < 6")


def test_a_click_plays_a_preview_with_sound(page, few):
    page.open(write(few, pictures=3))
    page.ask("""(() => { window.made = []; const make = document.createElement.bind(document);
        document.createElement = (tag) => {
            const node = make(tag); if (tag === 'video') made.push(node); return node; };
    })()""")
    page.point(".card .screen", click=True)
    page.wait("made.some((video) => !video.muted && !video.paused && video.currentTime > 0.1)")
    page.point(".card .screen", click=True)
    page.wait("made.every((video) => video.paused)")


def test_the_box_moves_with_the_face_and_the_axes_with_the_head(page, few):
    page.open(write(few, pictures=3))
    page.ask("document.querySelector('.card').scrollIntoView({block: 'center'})")
    page.wait("document.querySelector('.card canvas').getContext('2d').getImageData(2, 2, 1, 1).data[3] === 255")
    # First frame: left edge at 63/320 of the width, the middle of its height.
    row = """(() => { const canvas = document.querySelector('.card canvas');
        const line = canvas.getContext('2d').getImageData(0, Math.round(canvas.height * 0.3), canvas.width, 1).data;
        const yellow = []; for (let x = 0; x < canvas.width; x++)
          if (line[4 * x] > 200 && line[4 * x + 1] > 160 && line[4 * x + 2] < 150) yellow.push(x / canvas.width);
        return [yellow[0], yellow[yellow.length - 1]]; })()"""
    left, right = page.ask(row)
    assert abs(left - 63 / 320) < 0.01 and abs(right - 143 / 320) < 0.01
    page.point(".card .screen")
    page.wait(f"{row}[0] > 90 / 320")
    page.point("h1")


def test_cards_are_sorted_by_any_metric_in_either_direction(page, few):
    page.open(write(few, pictures=3))
    order = "[...document.querySelectorAll('.card')].map((node) => node.dataset.clip)"
    by = (
        "(name) => { const s = document.getElementById('sort'); s.value = name; s.dispatchEvent(new Event('change')); }"
    )
    ids = [f"{number:016x}" for number in range(3)]
    page.ask(f"({by})('face_ratio')")
    assert page.ask(order) == ids[::-1]
    page.ask(f"({by})('lip_sync')")
    assert page.ask(order) == ids
    page.point("#way", click=True)
    assert page.ask(order) == ids[::-1]


def test_cards_say_which_bound_drops_them(page, few):
    page.open(write(few, ["face_ratio>=0.35"], pictures=3))
    words = page.ask("[...document.querySelectorAll('.verdict')].map((node) => node.textContent).sort()")
    assert words == ["dropped: face_ratio>=0.35", "kept", "kept"]
    page.ask("document.getElementById('only').value = 'kept'")
    page.ask("document.getElementById('only').dispatchEvent(new Event('change')) && 0")
    assert page.ask("document.querySelectorAll('.card').length") == 2


def test_no_name_from_outside_becomes_script(page, tmp_path):
    evil = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>.mp4"
    store = filmed(tmp_path / "out", tmp_path)
    clips = [vars(clip) for clip in store.read(Clip, f"{7:064x}")]
    hurt = {"path": f"/{evil}", "source_set": evil, "person": evil, "speaker": evil, "binding": evil}
    store.write(Clip, f"{7:064x}", [Clip(**{**clip, **hurt}) for clip in clips])
    video = vars(store.read(Video, f"{7:016x}")[0])
    store.write(Video, f"{7:016x}", [Video(**{**video, "title": evil, "path": f"/{evil}", "source_set": evil})])
    page.open(write(store, pictures=3))
    page.ask("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    page.ask(SETTLED)
    assert evil in page.ask("document.querySelector('.card').textContent")
    assert page.ask("window.harmed === undefined && !document.querySelector('img')") is True


@pytest.mark.parametrize("width, dark", [(360, False), (360, True), (820, False), (1600, True)])
def test_the_page_fits_its_window(page, few, width, dark):
    page.size(width, 800, dark)
    page.open(write(few, BOUNDS[:1], pictures=3))
    try:
        assert page.ask("document.documentElement.scrollWidth") <= width
        ink, paper = (page.ask(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        bright = [sum(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in (ink, paper)]
        assert (bright[0] > bright[1]) == dark
    finally:
        page.size(1280, 900)


def test_everything_that_can_be_clicked_can_be_reached_by_keyboard(page, few):
    page.open(write(few, BOUNDS[:1], pictures=3))
    unreachable = """[...document.querySelectorAll('button, input, select, summary, a')]
        .filter((node) => !node.disabled && !node.hidden && node.tabIndex < 0).length"""
    assert page.ask(unreachable) == 0
    nameless = """[...document.querySelectorAll('button, input, select')].filter((node) =>
        !node.getAttribute('aria-label') && !node.textContent.trim() && !node.closest('label')).length"""
    assert page.ask(nameless) == 0


def test_nothing_is_fetched_but_the_page_itself(page, few):
    page.requests.clear()
    page.open(write(few, pictures=3))
    page.point(".card .screen")
    page.ask(SETTLED)
    assert len(page.requests) >= 1
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
