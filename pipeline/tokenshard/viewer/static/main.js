// The frame of the page: addresses behind "#", navigation, theme, keyboard.

import { open, problem } from "./api.js";
import * as codebook from "./codebook.js";
import { announce, bytes, count, h } from "./dom.js";
import * as maps from "./maps.js";
import * as samples from "./samples.js";
import * as search from "./search.js";
import * as storage from "./storage.js";

const VIEWS = {
  samples: ["Samples", samples],
  codebook: ["Codebook", codebook],
  storage: ["Storage", storage],
  maps: ["Map", maps],
  search: ["Search", search],
};
const KEYS = [
  ["1 … 4", "Samples, Codebook, Storage, …"],
  ["/", "Search or filter"],
  ["← →", "Page or sample before, after; move among pictures"],
  ["↑ ↓", "Move among pictures"],
  ["Enter", "Open"],
  ["Esc", "Leave a field; one page up"],
  ["+ −", "Map: closer, farther"],
  ["t", "Light or dark"],
  ["?", "This help"],
];
const main = document.getElementById("main");
let dataset = null;
let shown = { keys: {} };
let leaving = new AbortController();

/** The address behind "#" in parts: name of the view, its further parts, and values. */
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [view = "", ...parts] = path.split("/").map(decodeURIComponent);
  return { view: view || "samples", parts, values: new URLSearchParams(query) };
}

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  shown = { keys: {} };
  const asked = route();
  try {
    if (dataset === null) {
      main.replaceChildren(h("p", { class: "loading" }, "Opening the dataset …"));
      dataset = await open();
      introduce();
    }
    const [title, view] = VIEWS[asked.view] && dataset.views.includes(asked.view) ? VIEWS[asked.view] : VIEWS.samples;
    for (const link of document.querySelectorAll("#nav a")) {
      if (link.dataset.view === asked.view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const place = h("div", { class: `view ${asked.view}` });
    const made = await view.show(place, { ...asked, dataset, signal });
    if (signal.aborted) return;
    shown = made ?? { keys: {} };
    main.replaceChildren(place);
    document.title = `${shown.title ?? title} · ${dataset.name} · tokenshard`;
    announce(shown.title ?? title);
    shown.ready?.();
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) main.replaceChildren(problem(error, () => show()));
  }
}

function introduce() {
  document.getElementById("name").textContent = dataset.name;
  document.querySelector(".brand").title = dataset.location;
  document.getElementById("facts").textContent =
    `${count(dataset.samples)} samples · ${bytes(dataset.bytes)} · ${dataset.tokenizer.kind} · version ${dataset.version}`;
  document.getElementById("nav").replaceChildren(...dataset.views.map((name) =>
    h("a", { href: `#/${name}`, "data-view": name }, VIEWS[name][0])));
}

// -- theme ------------------------------------------------------------------------------------------------------------

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
}

function setTheme(theme) {
  if (theme !== "dark" && theme !== "light") return;
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("tokenshard-theme", theme);
}

// -- keyboard ---------------------------------------------------------------------------------------------------------

function pressed(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest?.("input:not([type=range]), select, textarea");
  if (event.key === "Escape") {
    if (document.getElementById("keys").open) return;
    if (field) field.blur();
    else if (shown.keys.Escape) shown.keys.Escape();
    else return;
    event.preventDefault();
    return;
  }
  const slides = event.target.matches?.("input[type=range], video") && event.key.startsWith("Arrow");
  if (field || slides || document.getElementById("keys").open) return;
  const action = shown.keys[event.key] ?? everywhere(event.key);
  if (!action || action(event) === false) return;
  event.preventDefault();
}

function everywhere(key) {
  if (key === "?") return () => document.getElementById("keys").showModal();
  if (key === "t") return switchTheme;
  if (key === "/") {
    const field = main.querySelector("[data-search]");
    return field && (() => { field.focus(); field.select(); });
  }
  const view = dataset?.views[Number(key) - 1];
  return view && (() => { location.hash = `#/${view}`; });
}

setTheme(localStorage.getItem("tokenshard-theme"));
document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
document.getElementById("keys-list").append(...KEYS.map(([key, text]) =>
  h("div", {}, h("dt", {}, key.split(" ").map((part) => part === "…" ? " … " : h("kbd", {}, part))), h("dd", {}, text))));
document.addEventListener("keydown", pressed);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", show);
show();
