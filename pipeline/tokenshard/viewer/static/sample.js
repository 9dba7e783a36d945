// The page of one sample: its picture at any rate, its codes, and its columns.

import { get, picture, problem, url } from "./api.js";
import { codesPanel } from "./codes.js";
import { count, h, table } from "./dom.js";
import { ratePanel } from "./rate.js";

/** Fills the page of sample NUMBER; a query `q` highlights what answers it on a page of a document. */
export async function showSample(place, { dataset, parts, values, signal }) {
  const number = Number(parts[0]);
  const sample = await get(`samples/${number}`, {}, signal);
  const state = { number, sample, dataset, signal, frame: 0, listeners: [] };
  const to = (other) => (other >= 0 && other < dataset.samples ? `#/samples/${other}` : null);
  const main = dataset.kind === "document" ? pageFigure(state, values.get("q") ?? "") : mainFigure(state);
  place.append(
    h("header", { class: "title" },
      h("h1", {}, sample.key),
      h("nav", { class: "pager", "aria-label": "Samples" },
        h("span", { class: "muted" }, `${count(number + 1)} of ${count(dataset.samples)}`),
        step("Previous", to(number - 1)), step("Next", to(number + 1)))),
    h("div", { class: "pair" }, main, codesPanel(state)),
    h("section", {}, h("h2", {}, "Columns"), columnsTable(sample)));
  const go = (href) => href !== null && (location.hash = href, true);
  return {
    title: sample.key,
    keys: {
      ArrowLeft: () => go(to(number - 1)),
      ArrowRight: () => go(to(number + 1)),
      Escape: () => { location.hash = values.get("q") ? `#/search?q=${encodeURIComponent(values.get("q"))}` : "#/samples"; },
    },
  };
}

function step(text, href) {
  return href ? h("a", { class: "button", href }, text) : h("span", { class: "button off", "aria-disabled": "true" }, text);
}

function mainFigure(state) {
  const { sample, dataset, number } = state;
  const pictured = dataset.decodes && dataset.kind !== "grid";
  const figure = h("figure", { class: "stage" });
  const image = picture(`samples/${number}/picture.png`, { frame: state.frame }, `Reconstruction of ${sample.key}`);
  const views = [["picture", pictured || dataset.kind === "grid" ? "Reconstruction" : "Codes"]];
  if (sample.clip && pictured) views.unshift(["clip", "Clip"]);
  if (dataset.originals) views.push(["original", "Original"]);
  const screen = h("div", { class: "screen" });
  let view = views[0][0];
  const save = h("a", { class: "button quiet", download: "" }, "PNG ↓");
  const draw = () => {
    save.href = url(`samples/${number}/picture.png`, { frame: state.frame, download: true });
    const playing = screen.querySelector("video");
    if (view === "clip" && playing) playing.currentTime = sample.clip.times[state.frame] ?? 0;
    else if (view === "clip") screen.replaceChildren(clip(state));
    else if (view === "original") {
      screen.replaceChildren(picture(`samples/${number}/original.png`, { frame: state.frame }, `Original of ${sample.key}`));
    } else {
      image.src = url(`samples/${number}/picture.png`, { frame: state.frame });
      screen.replaceChildren(image);
    }
  };
  const tabs = views.length > 1 && h("div", { class: "tabs", role: "group", "aria-label": "What is shown" },
    views.map(([name, text]) => h("button", {
      type: "button", "aria-pressed": String(name === view), onclick: (event) => {
        view = name;
        for (const tab of event.target.parentNode.children) tab.setAttribute("aria-pressed", String(tab === event.target));
        draw();
      },
    }, text)));
  state.listeners.push(draw);
  draw();
  figure.append(h("figcaption", {},
    h("h2", {}, views.length > 1 ? "Sample" : views[0][1]), tabs, save),
  screen);
  if (sample.clip) figure.append(frames(state));
  if (pictured) figure.append(ratePanel(state, (source) => {
    if (view !== "picture" && source) [...tabs.children].find((tab) => tab.textContent === "Reconstruction").click();
    image.src = source ?? url(`samples/${number}/picture.png`, { frame: state.frame });
  }));
  return figure;
}

/** The reconstruction as a movie, with the time stamp of the frame that is shown. */
function clip(state) {
  const { sample, number } = state;
  const said = h("output", { class: "stamp" });
  const video = h("video", {
    controls: true, loop: true, muted: true, playsinline: true, preload: "metadata",
    src: url(`samples/${number}/clip.mp4`), "aria-label": `Reconstruction of ${sample.key} as a clip`,
  });
  const stamp = () => {
    const { times } = sample.clip;
    let frame = times.findLastIndex((time) => time <= video.currentTime + 1e-3);
    frame = Math.max(0, frame);
    said.textContent = `frame ${frame} of ${sample.clip.frames} · ${times[frame].toFixed(3)} s`;
  };
  for (const event of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(event, stamp);
  video.addEventListener("error", async () => {
    const reason = await get(`samples/${number}/clip.mp4`).then(() => ({ kind: "spec", message: "This browser does not play H.264." }), (error) => error);
    video.closest(".clip")?.replaceChildren(problem(reason));
  });
  return h("div", { class: "clip" }, video, said);
}

/** A slider over the frames of a clip. */
function frames(state) {
  const { clip: about } = state.sample;
  const said = h("output", {}, stampOf(about, 0));
  const slider = h("input", {
    type: "range", min: "0", max: String(about.frames - 1), value: "0", "aria-label": "Frame", oninput: () => {
      state.frame = Number(slider.value);
      said.textContent = stampOf(about, state.frame);
      for (const listener of state.listeners) listener();
    },
  });
  return h("label", { class: "slider" }, h("span", {}, "Frame"), slider, said);
}

function stampOf(about, frame) {
  return `${frame} · ${(about.times[frame] ?? 0).toFixed(3)} s`;
}

/** A page of a document with the patches that answer a query. */
function pageFigure(state, query) {
  const { sample, dataset, number } = state;
  const screen = h("div", { class: "screen page" });
  const field = h("input", { type: "search", value: query, placeholder: "Highlight what answers …", "data-search": true, "aria-label": "Query" });
  const draw = () => {
    const about = dataset.originals ? `Page ${sample.key}` : `Attention of the patches of ${sample.key}`;
    const leaf = h("div", { class: "leaf" }, picture(`samples/${number}/picture.png`, {}, about));
    screen.replaceChildren(leaf);
    if (field.value.trim()) {
      leaf.append(picture(`samples/${number}/matches.png`, { q: field.value }, `Patches that answer “${field.value}”`, { class: "over" }));
    }
  };
  draw();
  return h("figure", { class: "stage" },
    h("figcaption", {}, h("h2", {}, "Page"),
      h("form", { class: "inline", role: "search", onsubmit: (event) => { event.preventDefault(); draw(); } }, field, h("button", {}, "Highlight"))),
    screen,
    !dataset.originals && h("p", { class: "muted" }, "The attention that each patch received, as it is stored. Start the viewer with --originals to see the page itself, where its source is at hand."));
}

function columnsTable(sample) {
  return table("Columns of the sample", [["Column", ""], ["Role", "muted"], ["Type", "muted"], ["Value", "value"]],
    sample.columns.map((column) => [
      column.name, column.role, column.type,
      column.means !== undefined ? `${column.means} (${column.value})` : shown(column.value),
    ]));
}

function shown(value) {
  if (value === null || value === undefined) return h("span", { class: "muted" }, "empty");
  if (typeof value === "object") return h("code", {}, JSON.stringify(value));
  const text = String(value);
  return text.length > 160 ? h("details", {}, h("summary", {}, `${text.slice(0, 120)}…`), text) : text;
}
