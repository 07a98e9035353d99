// Unpacks the columns, lays out the panels, and keeps everything in step with the bounds.

const panels = [];
let waiting = false;

function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const begun = performance.now();
    refresh();
    performance.measure("talkreel-move", { start: begun });
  });
}

function refresh() {
  const { kept, seconds, perSet } = clips.tally();
  clips.kept = kept;
  const share = clips.all ? (100 * seconds) / clips.all : 0;
  byId("kept").textContent =
    `${whole.format(kept)} of ${whole.format(N)} clips, ${hours(seconds)} of ${hours(clips.all)} (${share.toFixed(1)} %)`;
  byId("level").style.width = `${share}%`;
  const bounds = [
    ...clips.rules.filter((rule) => rule.on && rule.where).map((rule) => rule.where),
    ...clips.columns.flatMap((column) => column.bounds()),
  ];
  byId("command").textContent = facts.command + (bounds.length ? ` 'where=[${[...new Set(bounds)].join(",")}]'` : "");
  facts.sets.forEach((_, set) => (byId("sets").querySelectorAll(".set small")[set].textContent = hours(perSet[set])));
  for (const panel of panels) {
    panel.dirty = true;
    if (panel.visible) panel.draw();
  }
  sheet.refresh();
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const { panel } = entry.target;
    panel.visible = entry.isIntersecting;
    if (panel.visible && panel.dirty) panel.draw();
  }
}, { rootMargin: "150px" });

function layOutPanels() {
  let group = null;
  let grid = byId("paper");
  for (const column of clips.columns) {
    if (!column.fact.paper && column.fact.group !== group) {
      group = column.fact.group;
      grid = make("div", { class: "panels" });
      byId("panels").append(make("h3", {}, group), grid);
    }
    const panel = new Panel(column);
    panel.node.panel = panel;
    panels.push(panel);
    grid.append(panel.node);
    inView.observe(panel.node);
  }
}

function layOutSets() {
  const choose = (label, act, checked, colour) => {
    const input = make("input", { type: "radio", name: "set" });
    input.checked = checked;
    input.addEventListener("change", () => {
      act();
      refresh();
    });
    const node = make("label", { class: colour ? "set" : "" }, input);
    if (colour) node.append(make("i", { style: `background:${colour}` }));
    node.append(label, " ", make("small"));
    byId("sets").append(node);
  };
  const show = (set, compare) => () => Object.assign(view, { set, compare });
  choose("all sources", show(-1, false), true);
  const tint = (place) => (place < 6 ? `var(--set-${place})` : "var(--soft)");
  facts.sets.forEach((name, set) => choose(name, show(set, false), false, tint(set)));
  if (facts.sets.length > 1) choose("side by side", show(-1, true), false);
}

function layOutRules() {
  for (const rule of clips.rules) {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    rule.box = box;
    box.addEventListener("change", () => {
      clips.rule(rule, box.checked);
      changed();
    });
    const count = rule.broken.reduce((sum, broken) => sum + broken, 0);
    const about = [`${whole.format(count)} clips break it`, rule.source].filter(Boolean).join("; ");
    byId("rules").append(make("li", {}, make("label", {}, box, " ", make("code", {}, rule.text), " ", make("small", {}, about))));
  }
}

function toRecipe() {
  clips.recipe();
  for (const rule of clips.rules) rule.box.checked = true;
  for (const panel of panels) panel.show();
  changed();
}

async function copy() {
  const text = byId("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("copy").textContent = "Copied";
    setTimeout(() => (byId("copy").textContent = "Copy command"), 1500);
  } catch {
    getSelection().selectAllChildren(byId("command")); // for the person's own Ctrl-C
  }
}

function recolour() {
  readColours();
  refresh();
}

async function start() {
  await clips.load();
  readColours();
  layOutSets();
  layOutPanels();
  layOutRules();
  clips.recipe();
  for (const panel of panels) panel.show();
  sheet.start();
  refresh();
  byId("bar").hidden = false;
  byId("reset").addEventListener("click", toRecipe);
  byId("copy").addEventListener("click", copy);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  new ResizeObserver(() => panels.forEach((panel) => panel.visible && panel.draw())).observe(byId("panels"));
  document.documentElement.dataset.ready = "yes";
}

start();
