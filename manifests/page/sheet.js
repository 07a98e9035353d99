// The contact sheet: a card a clip, with a short film, the faces' boxes and the axes of the bound head.

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.card.poster();
}, { rootMargin: "300px" });

// Where the subject's left, the crown and the nose of a head point in the picture, for angles in degrees:
// R = Ry(yaw) Rx(-pitch) Rz(-roll), x to the right of the picture, y up, z towards the viewer (docs/metrics.md).
function headAxes(yaw, pitch, roll) {
  const [y, p, r] = [yaw, pitch, roll].map((angle) => (angle * Math.PI) / 180);
  return [[1, 0, 0], [0, 1, 0], [0, 0, 1]].map(([a, b, c]) => {
    const rolled = [a * Math.cos(r) + b * Math.sin(r), -a * Math.sin(r) + b * Math.cos(r), c];
    const up = rolled[1] * Math.cos(p) + rolled[2] * Math.sin(p);
    const near = -rolled[1] * Math.sin(p) + rolled[2] * Math.cos(p);
    return [rolled[0] * Math.cos(y) + near * Math.sin(y), -up]; // a canvas's y points down
  });
}

class Card {
  static playing = null;

  constructor(clip) {
    this.clip = clip;
    const [width, height] = clip.size;
    this.canvas = make("canvas", { width: 2 * width, height: 2 * height });
    const name = `clip ${clip.clip_id}`;
    this.screen = make("button", { class: "screen", type: "button", "aria-label": `Play ${name} with sound` }, this.canvas);
    this.value = make("span");
    this.verdict = make("div", { class: "verdict" });
    const place = `${clip.path.split("/").pop()} ${clip.start.toFixed(2)}–${clip.end.toFixed(2)} s`;
    this.node = make(
      "article",
      { class: "card", "data-clip": clip.clip_id },
      this.screen,
      make("div", { class: "value" }, this.value, make("span", {}, clip.source_set)),
      make("div", { class: "where", title: clip.path }, place),
      this.verdict,
      this.details(),
    );
    this.node.card = this;
    if (clip.film) {
      this.screen.addEventListener("click", () => (this.video && !this.video.muted ? this.stop() : this.play(true)));
      this.screen.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.play(false));
      this.screen.addEventListener("pointerleave", () => this.stop());
    } else {
      this.screen.disabled = true;
      this.say(clip.why || "no picture");
    }
    this.drawOver(0);
    seen.observe(this.node);
  }

  details() {
    const { clip } = this;
    const list = make("dl");
    const told = ["clip_id", "status", "binding", "speaker", "person"].filter((name) => clip[name]);
    for (const name of told) list.append(make("dt", {}, name), make("dd", {}, clip[name]));
    for (const [name, value] of Object.entries(clip.values)) list.append(make("dt", {}, name), make("dd", {}, plain(value, 4)));
    return make("details", {}, make("summary", {}, "all numbers"), make("div", { class: "where" }, clip.path), list);
  }

  say(words) {
    this.screen.append(make("span", { class: "none" }, words));
  }

  film() {
    const video = make("video", { playsinline: "", preload: "auto" });
    video.muted = true;
    video.src = `data:video/mp4;base64,${this.clip.film}`;
    return video;
  }

  // The film's first picture, once the card comes into view.
  poster() {
    if (!this.clip.film || this.shown) return;
    this.shown = true;
    const video = this.film();
    video.addEventListener("loadeddata", () => {
      if (!this.video) this.paint(video, 0);
      video.removeAttribute("src");
      video.load();
    }, { once: true });
    video.addEventListener("error", () => video.src && this.say("this browser cannot play h264"), { once: true });
  }

  paint(video, frame) {
    this.canvas.getContext("2d").drawImage(video, 0, 0, this.canvas.width, this.canvas.height);
    this.drawOver(frame);
  }

  drawOver(frame) {
    const pen = this.canvas.getContext("2d");
    const { bound, others } = this.clip;
    for (const face of others) this.box(pen, face[frame], "#ffffff99", [6, 6]);
    const face = bound[frame];
    this.box(pen, face, "#ffd75e", []);
    if (!face || face[4] === null || face[5] === null || face[6] === null) return;
    const { width, height } = this.canvas;
    const centre = [((face[0] + face[2]) / 2) * width, ((face[1] + face[3]) / 2) * height];
    const length = ((face[3] - face[1]) * height) / 2;
    headAxes(face[4], face[5], face[6]).forEach(([x, y], axis) => {
      pen.strokeStyle = ["#ff6b5e", "#6fdc6f", "#5eb1ff"][axis];
      pen.lineWidth = axis === 2 ? 5 : 3.5;
      pen.beginPath();
      pen.moveTo(...centre);
      pen.lineTo(centre[0] + x * length, centre[1] + y * length);
      pen.stroke();
    });
  }

  box(pen, face, colour, dash) {
    if (!face) return;
    const { width, height } = this.canvas;
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5;
    pen.setLineDash(dash);
    pen.strokeRect(face[0] * width, face[1] * height, (face[2] - face[0]) * width, (face[3] - face[1]) * height);
    pen.setLineDash([]);
  }

  play(sound) {
    if (Card.playing && Card.playing !== this) Card.playing.stop();
    if (this.video) {
      this.video.muted = !sound;
      this.video.currentTime = 0;
      return;
    }
    Card.playing = this;
    const video = this.film();
    this.video = video;
    video.muted = !sound;
    video.loop = true;
    this.node.classList.add("playing");
    const step = () => {
      if (this.video !== video) return;
      if (video.readyState >= 2) this.paint(video, Math.floor(video.currentTime * facts.fps + 0.01) % Math.max(1, this.clip.bound.length));
      requestAnimationFrame(step);
    };
    // Stopping before it has begun is no error.
    video.play().then(step, (error) => error.name !== "AbortError" && this.say("this browser does not play it"));
  }

  stop() {
    if (!this.video) return;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video = null;
    this.shown = false;
    this.poster();
    this.node.classList.remove("playing");
    if (Card.playing === this) Card.playing = null;
  }

  // Which number the card shows, and whether the bounds keep its clip.
  refresh(metric) {
    const column = clips.columns.find((known) => known.name === metric);
    const unit = column && column.fact.unit ? ` ${column.fact.unit}` : "";
    this.value.textContent = metric ? `${metric} ${plain(this.clip.values[metric], 3)}${metric in this.clip.values ? unit : ""}` : "";
    const broken = clips.verdict(this.clip.index);
    this.node.classList.toggle("dropped", broken.length > 0);
    this.verdict.textContent = broken.length ? `dropped: ${broken.join(", ")}` : "kept";
  }
}

const sheet = {
  cards: [],

  start() {
    if (!facts.cards.length) return;
    this.by = byId("sort");
    this.way = byId("way");
    this.only = byId("only");
    for (const column of clips.columns) this.by.append(make("option", { value: column.name }, column.name));
    if (facts.along) this.by.value = facts.along;
    this.cards = facts.cards.map((clip) => new Card(clip));
    for (const control of [this.by, this.only]) control.addEventListener("change", () => this.arrange());
    this.way.addEventListener("click", () => {
      const falling = this.way.getAttribute("aria-pressed") !== "true";
      this.way.setAttribute("aria-pressed", falling);
      this.way.textContent = falling ? "greatest first" : "least first";
      this.arrange();
    });
    this.arrange();
  },

  // Sorted, clips without the number last whichever way; those that the bounds keep, or drop, or all.
  arrange() {
    const metric = this.by.value;
    const sign = this.way.getAttribute("aria-pressed") === "true" ? -1 : 1;
    const number = (card) => card.clip.values[metric];
    const missing = (card) => (number(card) === undefined ? 1 : 0);
    const ordered = [...this.cards].sort((a, b) => missing(a) - missing(b) || sign * (number(a) - number(b)) || 0);
    const wanted = { all: () => true, kept: (index) => !clips.misses[index], dropped: (index) => clips.misses[index] };
    const shown = ordered.filter((card) => wanted[this.only.value](card.clip.index));
    for (const card of shown) card.refresh(metric);
    byId("sheet").replaceChildren(...shown.map((card) => card.node));
    byId("none").hidden = shown.length > 0;
  },

  refresh() {
    if (!this.cards.length) return;
    if (this.only.value !== "all") this.arrange();
    else for (const card of this.cards) card.refresh(this.by.value);
  },
};
