"use strict";
// Clips that play in step: one clock, one scrubber, the keyboard. Used by every page with clips.
//
// A player is the markup of player.html.j2. Its clips stand in a JSON block, or are handed to
// `root.player.load(clips)`: {id, label, url, poster, fps, frames, kind: "video" | "image"}.
// It sends the event "player:shown" when other clips are on the stage.
(() => {
  const HARD_DRIFT_S = 0.2; // beyond it a clip is sought; below, its speed is bent
  const BENT = 4; // change of speed for each second of drift
  const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  /** One clip on the stage: a figure that can be told a moment. */
  class Cell {
    constructor(clip, onChange) {
      this.clip = clip;
      this.wanted = null; // the moment to be shown, until it is
      this.asked = null; // the moment that the browser is seeking
      this.whole = null; // the clip in memory, where its server can't send parts of it
      this.fetching = false;
      this.failed = false;
      this.isVideo = clip.kind !== "image";
      this.figure = element("figure", "player-cell");
      this.figure.append(element("figcaption", "player-caption", clip.label));
      this.media = element(this.isVideo ? "video" : "img", "player-media");
      this.figure.append(this.media);
      if (this.isVideo) this.prepareVideo(onChange);
      else this.media.alt = clip.label;
      this.media.addEventListener("error", () => this.fail(onChange));
      this.media.src = clip.url;
    }

    prepareVideo(onChange) {
      const video = this.media;
      Object.assign(video, { muted: true, playsInline: true, preload: "auto" });
      video.disablePictureInPicture = true;
      video.setAttribute("aria-label", this.clip.label);
      if (this.clip.poster) video.poster = this.clip.poster;
      video.addEventListener("loadedmetadata", () => {
        if (this.canSeek || this.whole) this.ask();
        else if (!this.fetching) this.fetchWhole();
        onChange();
      });
      video.addEventListener("seeked", () => this.sought());
    }

    get canSeek() {
      const { seekable } = this.media;
      return seekable.length > 0 && seekable.end(seekable.length - 1) > this.media.duration / 2;
    }

    /** A simple web server sends no parts of files, and browsers then don't seek: have it whole. */
    async fetchWhole() {
      this.fetching = true;
      try {
        const answer = await fetch(this.clip.url);
        const data = await answer.arrayBuffer();
        this.whole = URL.createObjectURL(new Blob([data], { type: "video/mp4" }));
        this.media.src = this.whole;
      } catch {
        this.wanted = null; // it still plays, from its beginning
      }
      this.fetching = false;
    }

    fail(onChange) {
      this.failed = true;
      const what = this.isVideo ? "This clip can't be played" : "This picture can't be shown";
      const why = this.isVideo
        ? "its file isn't beside this page, or this browser has no H.264."
        : "its file isn't beside this page.";
      this.figure.append(element("p", "player-error", `${what}: ${why}`));
      onChange();
    }

    get fps() {
      return this.clip.fps || 16;
    }

    /** Seconds of the clip; 0 for a picture, or as long as nobody knows. */
    get duration() {
      if (!this.isVideo || this.failed) return 0;
      return this.clip.frames ? this.clip.frames / this.fps : this.media.duration || 0;
    }

    /** The middle of the frame that a moment lies in: there a browser shows just that frame. */
    middle(seconds) {
      const last = Math.max(Math.round(this.duration * this.fps) - 1, 0);
      return (clamp(Math.floor(seconds * this.fps + 1e-6), 0, last) + 0.5) / this.fps;
    }

    seek(seconds) {
      if (!this.isVideo || this.failed) return;
      this.wanted = seconds;
      if (this.media.readyState >= 1 && this.asked === null && !this.fetching) this.ask();
    }

    /** Seek once more if another moment is wanted by now: one seek at a time. */
    ask() {
      const isDone = this.wanted === null || Math.abs(this.media.currentTime - this.wanted) < 1e-4;
      this.asked = isDone ? null : this.wanted;
      if (isDone) this.wanted = null;
      else this.media.currentTime = this.wanted;
    }

    sought() {
      if (this.wanted === this.asked) this.wanted = null;
      this.asked = null;
      this.ask();
    }

    hold(seconds) {
      if (!this.isVideo || this.failed) return;
      this.media.pause();
      this.seek(this.middle(seconds));
    }

    /** Whether the clip still moves at a moment; a shorter one holds its last frame. */
    moves(seconds) {
      return this.duration - seconds > 1 / this.fps;
    }

    isReady(seconds) {
      if (!this.moves(seconds)) return true;
      return this.wanted === null && !this.fetching && this.media.readyState >= 3;
    }

    /** Keep a playing clip at the clock: bend its speed, or seek when it is far off. */
    follow(seconds, speed, onRefused) {
      if (!this.isVideo || this.failed) return;
      const video = this.media;
      if (!this.moves(seconds)) {
        if (!video.paused || Math.abs(video.currentTime - this.middle(seconds)) > 0.5 / this.fps)
          this.hold(seconds);
        return;
      }
      const drift = video.currentTime - seconds;
      if (Math.abs(drift) > HARD_DRIFT_S * Math.max(speed, 0.5) && this.wanted === null) {
        this.seek(seconds);
        return;
      }
      video.playbackRate = speed * clamp(1 - (BENT * drift) / speed, 0.75, 1.25);
      if (video.paused)
        video.play().catch((error) => {
          if (error.name === "NotAllowedError") onRefused();
        });
    }

    remove() {
      if (this.isVideo) {
        this.media.pause();
        this.media.removeAttribute("src");
        this.media.load();
        if (this.whole) URL.revokeObjectURL(this.whole);
      }
      this.figure.remove();
    }
  }

  class Player {
    constructor(root) {
      this.root = root;
      this.cells = [];
      this.clips = [];
      this.sides = [0, 1];
      this.time = 0;
      this.playing = false;
      this.part = (name) => root.querySelector(`[data-part="${name}"]`);
      this.buttons = [...root.querySelectorAll("[data-view]")];
      this.view = this.buttons.length ? this.buttons[0].dataset.view : "pair";
      this.wire();
      this.load(JSON.parse(this.part("clips").textContent));
    }

    wire() {
      this.root.addEventListener("click", (event) => {
        if (event.target.tagName === "VIDEO") this.toggle();
        const button = event.target.closest("button");
        if (!button) return;
        if (button.dataset.view) this.setView(button.dataset.view);
        if (button.dataset.do) this[button.dataset.do]();
      });
      for (const side of [0, 1])
        this.part(`side-${side}`).addEventListener("change", (event) =>
          this.choose(side, event.target.selectedIndex),
        );
      this.part("scrubber").addEventListener("input", (event) => {
        this.pause();
        this.goTo(Number(event.target.value));
      });
      this.part("divider").addEventListener("input", (event) =>
        this.split(Number(event.target.value)),
      );
      for (const name of ["pointerdown", "pointermove"])
        this.part("stage").addEventListener(name, (event) => this.drag(event));
      for (const name of ["pointerdown", "focusin"])
        this.root.addEventListener(name, () => (Player.active = this));
    }

    /** Show other clips, from their beginning. */
    load(clips) {
      this.pause();
      this.time = 0;
      this.clips = clips;
      this.sides = [0, Math.min(1, Math.max(clips.length - 1, 0))];
      for (const side of [0, 1])
        this.part(`side-${side}`).replaceChildren(
          ...clips.map((clip) => new Option(clip.label, clip.id)),
        );
      this.show();
    }

    /** Which clips, by index, the view has on the stage. */
    get shown() {
      if (this.view === "all") return this.clips.map((_, index) => index);
      return this.clips.length ? this.sides : [];
    }

    show() {
      const changed = () => this.refresh();
      const former = this.cells;
      this.cells = this.shown.map((index, position) => {
        const kept = former[position];
        if (kept && kept.clip === this.clips[index]) return kept;
        return new Cell(this.clips[index], changed);
      });
      former.filter((cell) => !this.cells.includes(cell)).forEach((cell) => cell.remove());
      const stage = this.part("stage");
      stage.replaceChildren(...this.cells.map((cell) => cell.figure));
      stage.dataset.view = this.view;
      this.root.dataset.view = this.view;
      for (const side of [0, 1]) this.part(`side-${side}`).selectedIndex = this.sides[side];
      for (const button of this.buttons)
        button.setAttribute("aria-pressed", String(button.dataset.view === this.view));
      this.part("choice").hidden = this.view === "all";
      this.part("wipe").hidden = this.view !== "wipe";
      this.refresh();
      if (!this.playing) this.goTo(this.frame);
      this.root.dispatchEvent(new CustomEvent("player:shown", { bubbles: true }));
    }

    /** The finest clock among the shown clips; frames are counted by it. */
    get fps() {
      return Math.max(...this.cells.map((cell) => (cell.isVideo ? cell.fps : 0)), 0) || 16;
    }

    get duration() {
      return Math.max(...this.cells.map((cell) => cell.duration), 0);
    }

    get frames() {
      return Math.max(Math.round(this.duration * this.fps), 1);
    }

    get frame() {
      return clamp(Math.floor(this.time * this.fps + 1e-6), 0, this.frames - 1);
    }

    get speed() {
      return Number(this.part("speed").value);
    }

    refresh() {
      this.part("controls").hidden = this.duration === 0;
      const scrubber = this.part("scrubber");
      scrubber.max = String(this.frames - 1);
      scrubber.value = String(this.frame);
      const text = `frame ${this.frame + 1} of ${this.frames}`;
      if (scrubber.getAttribute("aria-valuetext") !== text) {
        scrubber.setAttribute("aria-valuetext", text);
        this.part("time").textContent = `${this.frame + 1} / ${this.frames}`;
      }
      const play = this.part("play");
      play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      play.dataset.playing = String(this.playing);
    }

    goTo(frame) {
      const index = clamp(frame, 0, this.frames - 1);
      this.time = (index + 0.5) / this.fps;
      this.cells.forEach((cell) => cell.hold(this.time));
      this.refresh();
    }

    play() {
      if (this.playing || this.duration === 0) return;
      if (this.frame >= this.frames - 1) this.goTo(0);
      this.playing = true;
      this.last = performance.now();
      this.refresh();
      requestAnimationFrame((now) => this.tick(now));
    }

    pause() {
      if (!this.playing) return;
      this.playing = false;
      this.goTo(this.frame);
    }

    toggle() {
      if (this.playing) this.pause();
      else this.play();
    }

    back() {
      this.pause();
      this.goTo(this.frame - 1);
    }

    forward() {
      this.pause();
      this.goTo(this.frame + 1);
    }

    /** One picture of the screen: the clock goes on only while every clip can follow it. */
    tick(now) {
      if (!this.playing) return;
      const elapsed = (now - this.last) / 1000;
      this.last = now;
      if (this.cells.every((cell) => cell.isReady(this.time))) {
        this.time += elapsed * this.speed;
        if (this.time >= this.duration && !this.turnAround()) return;
        this.cells.forEach((cell) => cell.follow(this.time, this.speed, () => this.pause()));
      } else {
        this.cells.forEach((cell) => cell.isReady(this.time) && cell.isVideo && cell.media.pause());
      }
      this.refresh();
      requestAnimationFrame((next) => this.tick(next));
    }

    /** At the end: from the beginning, or stop at the last frame. */
    turnAround() {
      if (!this.part("loop").checked) {
        this.time = this.duration - 0.5 / this.fps;
        this.pause();
        return false;
      }
      this.time = 0;
      this.cells.forEach((cell) => cell.seek(0));
      return true;
    }

    choose(side, index) {
      this.sides[side] = index;
      this.show();
    }

    swap() {
      if (this.view === "all") return;
      this.sides = [this.sides[1], this.sides[0]];
      this.cells.reverse();
      this.show();
    }

    next(side) {
      if (this.view === "all" || !this.clips.length) return;
      this.choose(side, (this.sides[side] + 1) % this.clips.length);
    }

    setView(view) {
      this.view = view;
      this.show();
    }

    nextView() {
      const at = this.buttons.findIndex((button) => button.dataset.view === this.view);
      this.setView(this.buttons[(at + 1) % this.buttons.length].dataset.view);
    }

    split(percent) {
      this.part("divider").value = String(percent);
      this.part("stage").style.setProperty("--split", `${percent}%`);
    }

    drag(event) {
      if (this.view !== "wipe" || !(event.buttons & 1)) return;
      const box = this.part("stage").getBoundingClientRect();
      this.split(clamp(((event.clientX - box.left) / box.width) * 100, 0, 100));
    }

    faster(by) {
      const at = SPEEDS.indexOf(this.speed) + by;
      this.part("speed").value = String(SPEEDS[clamp(at, 0, SPEEDS.length - 1)]);
    }

    /** Do what a key says; false for a key that means nothing here. */
    press(key) {
      const keys = {
        " ": () => this.toggle(),
        k: () => this.toggle(),
        ArrowLeft: () => this.back(),
        ArrowRight: () => this.forward(),
        ",": () => this.back(),
        ".": () => this.forward(),
        Home: () => (this.pause(), this.goTo(0)),
        End: () => (this.pause(), this.goTo(this.frames - 1)),
        1: () => this.next(0),
        2: () => this.next(1),
        s: () => this.swap(),
        v: () => this.nextView(),
        l: () => this.part("loop").click(),
        "-": () => this.faster(-1),
        "+": () => this.faster(1),
      };
      if (!Object.hasOwn(keys, key)) return false;
      keys[key]();
      return true;
    }
  }

  /** Whether a key belongs to the control that has the focus. */
  const isTaken = (event) => {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return true;
    if (target.closest("select, textarea, [contenteditable]")) return true;
    if (target.closest("button, a, summary")) return event.key === " ";
    if (target.type === "range") return /^(Arrow|Home|End)/.test(event.key);
    if (target.type === "checkbox") return event.key === " ";
    return target.tagName === "INPUT";
  };

  document.addEventListener("keydown", (event) => {
    if (Player.active && !isTaken(event) && Player.active.press(event.key)) event.preventDefault();
  });

  for (const root of document.querySelectorAll("[data-player]")) {
    root.player = new Player(root);
    Player.active ??= root.player;
  }
})();
