// The grid of samples, and the page of one.

import { get, picture, problem } from "./api.js";
import { announce, choice, count, h } from "./dom.js";
import { showSample } from "./sample.js";

const PAGE = 48;
const PLAIN_NAME = /^[A-Za-z_][A-Za-z0-9_]*$/;
const MOST_NAMES = 500;

/** Shows `#/samples` or `#/samples/NUMBER`. */
export async function show(place, context) {
  return context.parts.length ? showSample(place, context) : showGrid(place, context);
}

async function showGrid(place, { dataset, values, signal }) {
  const asked = Object.fromEntries(values);
  const first = Number(asked.from ?? 0);
  const list = h("ul", { class: "tiles", "aria-label": "Samples" });
  const said = h("p", { class: "muted", role: "status" });
  const goOn = h("nav", { class: "pager", "aria-label": "Pages" });
  place.append(filters(dataset, asked), list, h("footer", { class: "below" }, said, goOn));
  const filtered = Boolean(asked.key || asked.where);
  let page;
  try {
    page = await get("samples", { from: first, count: PAGE, key: asked.key, contains: asked.contains, where: asked.where }, signal);
    // a search gives up after a moment; what it did not look at is asked for until there is a page
    const until = performance.now() + 8000;
    while (page.samples.length < PAGE && page.next !== null && performance.now() < until) {
      said.textContent = `Searched ${count(page.searched)} of ${count(page.total)} …`;
      const more = await get("samples", { from: page.next, count: PAGE - page.samples.length, key: asked.key, contains: asked.contains, where: asked.where }, signal);
      page = { ...more, first, samples: [...page.samples, ...more.samples] };
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    list.replaceWith(problem(error));
    return { keys: { Escape: () => location.assign("#/samples") } };
  }
  list.append(...page.samples.map((sample) => tile(sample)));
  if (!page.samples.length) {
    list.replaceWith(h("p", { class: "empty" }, dataset.samples ? "No sample is like that." : "The dataset is empty."));
  }
  const to = (from) => address({ ...asked, from: from || undefined });
  const before = filtered ? null : Math.max(0, first - PAGE);
  const links = {
    previous: first > 0 && !filtered ? to(before) : null,
    next: page.next !== null ? to(page.next) : null,
  };
  said.textContent = filtered
    ? `${page.samples.length} shown; searched ${count(page.searched)} of ${count(page.total)}`
    : `${count(first + Math.min(1, page.total))} – ${count(first + page.samples.length)} of ${count(page.total)}`;
  announce(said.textContent);
  goOn.append(
    link(filtered ? "First" : "Previous", filtered ? (first > 0 ? to(0) : null) : links.previous),
    link("Next", links.next),
  );
  return {
    title: "Samples",
    keys: {
      ArrowLeft: () => moved(list, -1) || turn(filtered ? null : links.previous),
      ArrowRight: () => moved(list, 1) || turn(links.next),
      ArrowDown: () => moved(list, columns(list)) || begin(list),
      ArrowUp: () => moved(list, -columns(list)),
      Escape: () => { if (filtered) location.hash = "#/samples"; },
    },
  };
}

function filters(dataset, asked) {
  const key = h("input", {
    type: "search", value: asked.key ?? "", placeholder: "Key …", "data-search": true, "aria-label": "Key",
    autocomplete: "off", spellcheck: "false",
  });
  const how = choice("Match", [["", "starts with"], ["1", "contains"]], asked.contains ?? "", () => go());
  const where = h("input", {
    type: "text", value: asked.where ?? "", placeholder: example(dataset), "aria-label": "Predicate on columns",
    autocomplete: "off", spellcheck: "false", class: "code",
  });
  const go = (predicate = where.value) => {
    location.hash = address({ key: key.value || undefined, contains: how.querySelector("select").value || undefined, where: predicate || undefined });
  };
  const labels = dataset.columns
    .filter((column) => column.role === "label" && column.names && column.names.length <= MOST_NAMES && PLAIN_NAME.test(column.name))
    .map((column) => {
      const chosen = new RegExp(`^${column.name} == (\\d+)$`).exec(asked.where ?? "")?.[1] ?? "";
      const names = column.names.map((name, value) => [value, name]);
      return choice(column.name, [["", "all"], ...names], chosen, (value) => go(value === "" ? "" : `${column.name} == ${value}`));
    });
  return h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); go(); } },
    h("label", { class: "field wide" }, h("span", {}, "Key"), key), how, labels,
    h("label", { class: "field wide" }, h("span", {}, "Where"), where),
    h("button", { type: "submit" }, "Filter"),
    (asked.key || asked.where) && h("a", { class: "button quiet", href: "#/samples" }, "Clear"));
}

/** A predicate that makes sense for these columns. */
function example(dataset) {
  const column = dataset.columns.find((one) => one.role === "label" && PLAIN_NAME.test(one.name))
    ?? dataset.columns.find((one) => one.name === "page" || one.name === "width" || one.name === "level");
  if (!column) return "column > 0";
  return column.type === "string" ? `${column.name} == "…"` : `${column.name} < 3`;
}

function tile(sample) {
  const labels = Object.values(sample.labels).filter((value) => value !== null).map(String).join(", ");
  const text = labels ? `${sample.key}, ${labels}` : sample.key;
  return h("li", {}, h("a", { href: `#/samples/${sample.number}`, title: text },
    h("span", { class: "frame" }, thumbnail(sample.number, sample.key)),
    h("span", { class: "key" }, ending(sample.key)),
    labels && h("span", { class: "label" }, labels)));
}

/** The small picture of a sample. */
export function thumbnail(number, key) {
  return picture(`samples/${number}/thumbnail.png`, {}, `Reconstruction of ${key}`, { loading: "lazy" });
}

/** The end of a key tells more than its beginning. */
export function ending(key, most = 18) {
  return key.length <= most ? key : `…${key.slice(1 - most)}`;
}

function address(values) {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(given).toString();
  return `#/samples${query ? `?${query}` : ""}`;
}

function link(text, href) {
  return href ? h("a", { class: "button", href }, text) : h("span", { class: "button off", "aria-disabled": "true" }, text);
}

function turn(href) {
  if (href === null) return false;
  location.hash = href;
  return true;
}

function columns(list) {
  return getComputedStyle(list).gridTemplateColumns.split(" ").length;
}

function begin(list) {
  list.querySelector("a")?.focus();
}

function moved(list, step) {
  const links = [...list.querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  if (at < 0 || !links[at + step]) return false;
  links[at + step].focus();
  return true;
}
