// Elements, and figures as people read them.

const SVG = "http://www.w3.org/2000/svg";

/** An element: h("p", {class: "muted"}, "text", child). Properties that begin with "on" are listeners. */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for parts of an SVG picture. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A labelled choice. ``options``: [value, text] pairs. */
export function choice(label, options, value, onchange) {
  const select = h(
    "select",
    { onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => h("option", { value: String(key), selected: String(key) === String(value) }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), select);
}

/** A table; ``columns``: [heading, class] pairs, ``rows``: lists of cells. */
export function table(caption, columns, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([text, kind]) => h("th", { class: kind, scope: "col" }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, place) => h("td", { class: columns[place][1] }, cell)))))));
}

/** Figures with their names, side by side. */
export function figures(pairs) {
  return h("dl", { class: "figures" }, pairs.filter(Boolean).map(([name, value, hint]) =>
    h("div", { title: hint }, h("dt", {}, name), h("dd", {}, value))));
}

/** A bar as long as a share from 0 to 1. */
export function bar(share, kind = "") {
  const width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return h("span", { class: `meter ${kind}`, "aria-hidden": "true" }, h("span", { style: { width } }));
}

export const count = (value) => value.toLocaleString("en-US");
export const figure = (value, digits = 2) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: digits });
export const percent = (share) => `${(100 * share).toLocaleString("en-US", { maximumSignificantDigits: 3 })} %`;

export function bytes(value) {
  let unit = 0;
  const units = ["B", "kB", "MB", "GB", "TB"];
  while (value >= 999.5 && unit < 4) { value /= 1000; unit += 1; }
  return `${unit ? value.toPrecision(3) : Math.round(value)} ${units[unit]}`;
}

/** Says something to those who do not see the page. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** What was counted, where that is not everything. */
export function ofWhom(counted) {
  return counted.samples === counted.of
    ? `counted in all ${count(counted.of)} samples`
    : `counted in ${count(counted.samples)} of ${count(counted.of)} samples, spread evenly`;
}

/** Calls ``action`` once nothing has happened for a moment. */
export function soon(action, delay = 120) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), delay);
  };
}
