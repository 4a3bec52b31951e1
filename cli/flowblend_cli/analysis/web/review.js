"use strict";
// A blind review: one set after the other, scores that start unset, kept in this browser until they
// are saved as a file. Nothing is sent anywhere.
(() => {
  const MOST = 10;
  const HINTS = {
    naturalness: "Does it look and move as it would in reality?",
    sharpness: "Are edges and details crisp?",
    "temporal consistency": "Does everything keep its shape, colour and place over time?",
    structure: "Are shapes, parts and proportions right?",
    texture: "Do surfaces look like what they are made of?",
    colour: "Are the colours right?",
    adherence: "Does it show what the prompt asks for?",
  };
  const at = (id) => document.getElementById(id);
  const review = JSON.parse(at("review").textContent);
  const store = `flowblend-review-${review.review}`;
  const sets = review.sets;
  const clips = sets.flatMap((set) => set.clips.map((clip) => ({ ...clip, set })));
  const player = document.querySelector("[data-player]").player;
  let state = restore();
  let cards = new Map();

  function make(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // --- what is kept -------------------------------------------------------------------------

  function fresh() {
    const random = crypto.getRandomValues(new Uint32Array(2));
    const session = [...random].map((part) => part.toString(16).padStart(8, "0")).join("");
    return { rater: "", session, scores: {}, notes: {}, set: 0 };
  }

  /** What an earlier visit left; of what anybody could have written there, only what fits. */
  function restore() {
    const clean = fresh();
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(store));
    } catch {
      // No storage, or none of ours: the page works without.
    }
    if (kept === null || typeof kept !== "object") return clean;
    if (typeof kept.rater === "string") clean.rater = kept.rater;
    if (/^[0-9a-f]{16}$/.test(kept.session)) clean.session = kept.session;
    if (Number.isInteger(kept.set) && kept.set >= 0 && kept.set <= sets.length)
      clean.set = kept.set;
    for (const clip of clips) {
      for (const criterion of clip.set.criteria) {
        const score = kept.scores?.[clip.id]?.[criterion];
        if (Number.isInteger(score) && score >= 0 && score <= MOST)
          (clean.scores[clip.id] ??= {})[criterion] = score;
      }
      if (typeof kept.notes?.[clip.id] === "string") clean.notes[clip.id] = kept.notes[clip.id];
    }
    return clean;
  }

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(state));
    } catch {
      // Private windows and full disks: scores then last as long as the page is open.
    }
    showProgress();
  }

  const scoreOf = (clip, criterion) => state.scores[clip.id]?.[criterion];
  const isScored = (clip, set) => set.criteria.every((name) => scoreOf(clip, name) !== undefined);

  function stateOf(set) {
    const some = set.clips.some((clip) => state.scores[clip.id] !== undefined);
    if (set.clips.every((clip) => isScored(clip, set))) return "done";
    return some ? "some" : "none";
  }

  // --- scoring ------------------------------------------------------------------------------

  function score(clip, criterion, value) {
    const scores = (state.scores[clip.id] ??= {});
    if (value === null) delete scores[criterion];
    else scores[criterion] = value;
    if (!Object.keys(scores).length) delete state.scores[clip.id];
    const row = rows().find((one) => one.clip === clip && one.criterion === criterion);
    row.fieldset.dataset.scored = String(value !== null);
    for (const radio of row.radios) radio.checked = Number(radio.value) === value;
    row.clear.disabled = value === null;
    keep();
  }

  const rows = () => [...cards.values()].flatMap((card) => card.rows);

  function makeRow(clip, criterion) {
    const radios = Array.from({ length: MOST + 1 }, (_, value) =>
      make("input", { type: "radio", name: `${clip.id} ${criterion}`, value: String(value) }),
    );
    const clear = make("button", { type: "button", textContent: "×", title: "Take it back (del)" });
    clear.setAttribute("aria-label", `Take back ${criterion} of ${clip.label}`);
    const scale = make("div", { className: "scale" });
    for (const radio of radios) {
      const label = make("label", {}, radio, make("span", { textContent: radio.value }));
      radio.setAttribute("aria-label", radio.value);
      scale.append(label);
    }
    scale.append(clear);
    const legend = make("legend", { textContent: criterion, title: HINTS[criterion] ?? "" });
    const fieldset = make("fieldset", {}, legend, scale);
    const row = { clip, criterion, fieldset, radios, clear };
    fieldset.addEventListener("change", (event) =>
      score(clip, criterion, Number(event.target.value)),
    );
    fieldset.addEventListener("keydown", (event) => pressInRow(event, row));
    clear.addEventListener("click", () => {
      score(clip, criterion, null);
      focusRow(row);
    });
    return row;
  }

  function makeCard(clip, set) {
    const element = make("section", { className: "card" });
    element.dataset.letter = clip.label;
    element.setAttribute("aria-label", `Scores of ${clip.label}`);
    const note = make("input", {
      type: "text",
      className: "note",
      maxLength: 500,
      placeholder: "Note (optional)",
      value: state.notes[clip.id] ?? "",
    });
    note.setAttribute("aria-label", `Note on ${clip.label}`);
    note.addEventListener("input", () => {
      state.notes[clip.id] = note.value;
      keep();
    });
    const made = { element, rows: set.criteria.map((criterion) => makeRow(clip, criterion)) };
    element.append(...made.rows.map((row) => row.fieldset), note);
    return made;
  }

  /** The row's radios take digits; what plays the clips still does, but for the arrows. */
  function pressInRow(event, row) {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.tagName === "BUTTON" && (key === " " || key === "Enter")) return;
    if (/^[0-9]$/.test(key) || key === "x") {
      score(row.clip, row.criterion, key === "x" ? MOST : Number(key));
      focusAfter(row);
    } else if (key === "Delete" || key === "Backspace") {
      score(row.clip, row.criterion, null);
      focusRow(row);
    } else if (!(/^[a-jnp]$/.test(key) && pressAnywhere(key))) {
      if (/^(Arrow|Home|End)/.test(key) || !player.press(key)) return;
    }
    event.preventDefault();
  }

  /** Go on to the next row; beyond the last one, to the button that leads on. */
  function focusAfter(row) {
    const all = rows().filter((one) => one.fieldset.isConnected);
    const next = all[all.indexOf(row) + 1];
    if (next) focusRow(next);
    else at("next").focus();
  }

  function focusRow(row) {
    (row.radios.find((radio) => radio.checked) ?? row.radios[0]).focus();
    row.fieldset.scrollIntoView({ block: "nearest" });
  }

  // --- sets ---------------------------------------------------------------------------------

  function placeCards() {
    const shown = player.cells.map((cell) => cards.get(cell.clip.id)?.element);
    const isApart = player.view !== "all"; // two clips are compared with nothing between them
    player.cells.forEach((cell, index) => {
      if (!isApart && shown[index]) cell.figure.append(shown[index]);
    });
    at("below").replaceChildren(...(isApart ? new Set(shown.filter(Boolean)) : []));
  }

  function show(index) {
    state.set = index;
    at("set").hidden = index === sets.length;
    at("end").hidden = index !== sets.length;
    if (index === sets.length) showEnd();
    else showSet(sets[index], index);
    keep();
  }

  function showSet(set, index) {
    at("title").textContent = `Set ${index + 1} of ${sets.length}`;
    at("prompt").textContent = set.prompt;
    at("criteria").replaceChildren(
      ...set.criteria.flatMap((name) => [
        make("dt", { textContent: name }),
        make("dd", { textContent: HINTS[name] ?? "" }),
      ]),
    );
    cards = new Map(set.clips.map((clip) => [clip.id, makeCard(clip, set)]));
    player.load(set.clips);
    for (const row of rows()) score(row.clip, row.criterion, scoreOf(row.clip, row.criterion) ?? null);
    at("previous").disabled = index === 0;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
  }

  function showProgress() {
    const done = clips.filter((clip) => isScored(clip, clip.set)).length;
    at("progress").max = clips.length;
    at("progress").value = done;
    at("told").textContent = `${done} of ${clips.length} scored`;
    at("sets").childNodes.forEach((button, index) => {
      const isEnd = index === sets.length;
      button.dataset.state = isEnd ? "none" : stateOf(sets[index]);
      if (index === state.set) button.setAttribute("aria-current", "step");
      else button.removeAttribute("aria-current");
    });
    if (state.set < sets.length) {
      const isDone = stateOf(sets[state.set]) === "done";
      at("next").textContent = isDone ? "Next" : "Skip for now";
      at("next").classList.toggle("main", isDone);
    }
  }

  function go(index) {
    player.pause();
    show(Math.min(Math.max(index, 0), sets.length));
    at(state.set === sets.length ? "end-title" : "title").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }

  // --- the end ------------------------------------------------------------------------------

  function showEnd() {
    const missing = clips.filter((clip) => !isScored(clip, clip.set)).length;
    at("end-title").textContent = missing
      ? `${clips.length - missing} of ${clips.length} scored`
      : `All ${clips.length} scored: thank you`;
    const open = sets.flatMap((set, index) => (stateOf(set) === "done" ? [] : [index]));
    at("gaps").replaceChildren(
      ...(open.length ? ["Not complete: "] : []),
      ...open.map((index) => {
        const button = make("button", { type: "button", textContent: `Set ${index + 1}` });
        button.addEventListener("click", () => go(index));
        return button;
      }),
    );
    at("saved").textContent = "";
  }

  function toFile() {
    const scores = clips.flatMap((clip) =>
      clip.set.criteria
        .filter((criterion) => scoreOf(clip, criterion) !== undefined)
        .map((criterion) => ({ item: clip.id, criterion, score: scoreOf(clip, criterion) })),
    );
    const notes = clips
      .filter((clip) => (state.notes[clip.id] ?? "").trim())
      .map((clip) => ({ item: clip.id, note: state.notes[clip.id].trim() }));
    const saved = new Date().toISOString();
    const { rater, session } = state;
    return { v: 1, review: review.review, rater: rater.trim(), session, saved, scores, notes };
  }

  function save() {
    const isNameless = !state.rater.trim();
    at("nameless").hidden = !isNameless;
    if (isNameless) {
      at("rater").focus();
      return;
    }
    const text = JSON.stringify(toFile(), null, 1);
    const who = state.rater.trim().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
    const name = `review-${review.review}-${who || "rater"}.json`;
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    at("saved").textContent = `Saved as ${name}, where your browser keeps downloads.`;
  }

  function clear() {
    if (!confirm("Clear the name and every score on this device? Save them first.")) return;
    state = fresh();
    at("rater").value = "";
    go(0);
  }

  // --- keys ---------------------------------------------------------------------------------

  function pressAnywhere(key) {
    if (state.set === sets.length && key !== "p") return false;
    if (key === "n") go(state.set + 1);
    else if (key === "p") go(state.set - 1);
    else {
      const clip = sets[state.set].clips[key.charCodeAt(0) - 97];
      const card = clip && cards.get(clip.id);
      if (!card || !card.element.isConnected) return false;
      focusRow(card.rows.find((row) => scoreOf(clip, row.criterion) === undefined) ?? card.rows[0]);
    }
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("select, input:not([type=range], [type=checkbox])")) return;
    if (/^[a-jnp]$/.test(event.key) && pressAnywhere(event.key)) event.preventDefault();
  });

  at("sets").append(
    ...[...sets.keys(), sets.length].map((index) => {
      const isEnd = index === sets.length;
      const button = make("button", {
        type: "button",
        textContent: isEnd ? "End" : String(index + 1),
        ariaLabel: isEnd ? "The end: save" : `Set ${index + 1}`,
      });
      button.addEventListener("click", () => go(index));
      return button;
    }),
  );
  at("rater").value = state.rater;
  at("rater").addEventListener("input", (event) => {
    state.rater = event.target.value;
    at("nameless").hidden = true;
    keep();
  });
  at("previous").addEventListener("click", () => go(state.set - 1));
  at("back-to-sets").addEventListener("click", () => go(sets.length - 1));
  at("next").addEventListener("click", () => go(state.set + 1));
  at("save").addEventListener("click", save);
  at("clear").addEventListener("click", clear);
  player.root.addEventListener("player:shown", placeCards);
  at("help").open = !clips.some((clip) => state.scores[clip.id]);
  show(state.set);
})();
