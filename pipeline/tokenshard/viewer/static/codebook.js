// The codes of a level by use, and the page of one code.

import { get, url } from "./api.js";
import { bar, choice, count, figure, figures, h, ofWhom, percent, svg, table } from "./dom.js";
import { ending, thumbnail } from "./samples.js";

const PAGE = 96;
const ORDERS = [["most", "most used first"], ["least", "least used first"], ["number", "by number"]];
const SIDES = [["above", "Above"], ["left", "Left"], ["right", "Right"], ["below", "Below"], ["next", "Next frame"]];

/** Shows `#/codebook`, `#/codebook/LEVEL` or `#/codebook/LEVEL/CODE`. */
export async function show(place, context) {
  const level = Number(context.parts[0] ?? 0);
  return context.parts.length > 1 ? showCode(place, level, Number(context.parts[1]), context) : showLevel(place, level, context);
}

async function showLevel(place, level, { values, signal }) {
  const asked = { order: values.get("order") ?? "most", from: Number(values.get("from") ?? 0), count: PAGE };
  const found = await get(`codebook/${level}`, asked, signal);
  const to = (changes) => `#/codebook/${changes.level ?? level}?${new URLSearchParams({ order: asked.order, from: 0, ...changes })}`;
  const levels = Array.from({ length: found.levels }, (_, number) => [number, `level ${number}`]);
  const before = asked.from > 0 ? to({ from: Math.max(0, asked.from - PAGE) }) : null;
  const after = asked.from + PAGE < found.alphabet ? to({ from: asked.from + PAGE }) : null;
  const draw = found.pictures ? strip(`codebook/${level}/strip.png`, asked, found.codes.length) : null;
  place.append(
    h("div", { class: "overview" },
      figures([
        ["codes", count(found.alphabet)],
        ["used", `${count(found.used)} (${percent(found.used / found.alphabet)})`],
        ["entropy", `${figure(found.entropy)} bits`, "Of the distribution of codes, without context"],
        ["perplexity", figure(found.perplexity, 0), "As many equally frequent codes would have this entropy"],
      ]),
      curve(found.curve)),
    h("div", { class: "filters" },
      levels.length > 1 && choice("Level", levels, level, (value) => { location.hash = to({ level: value }); }),
      choice("Order", ORDERS, asked.order, (value) => { location.hash = to({ order: value }); }),
      h("p", { class: "muted small" }, `${ofWhom(found.counted)[0].toUpperCase()}${ofWhom(found.counted).slice(1)}.${found.pictures ? "" : " Codes of this level have no picture of their own."}`)),
    h("ul", { class: "tiles codes", "aria-label": "Codes" }, found.codes.map((one, index) =>
      h("li", {}, h("a", { href: `#/codebook/${level}/${one.code}`, title: `Code ${one.code}: ${count(one.count)} times, rank ${one.rank + 1}` },
        draw && draw(index, `Picture of code ${one.code}`),
        h("span", { class: "key" }, String(one.code)),
        h("span", { class: "label" }, count(one.count)),
        bar(one.count / Math.max(1, found.largest)))))),
    h("footer", { class: "below" },
      h("p", { class: "muted" }, `${count(asked.from + 1)} – ${count(asked.from + found.codes.length)} of ${count(found.alphabet)}`),
      h("nav", { class: "pager", "aria-label": "Pages" }, pageLink("Previous", before), pageLink("Next", after))));
  const go = (href) => href !== null && (location.hash = href, true);
  return { title: "Codebook", keys: { ArrowLeft: () => go(before), ArrowRight: () => go(after) } };
}

async function showCode(place, level, code, { signal }) {
  const found = await get(`codebook/${level}/${code}`, {}, signal);
  const to = (other) => (other >= 0 && other < found.alphabet ? `#/codebook/${level}/${other}` : null);
  place.append(
    h("header", { class: "title" },
      h("h1", {}, `Code ${code}`, level > 0 || found.levels > 1 ? h("small", { class: "muted" }, ` of level ${level}`) : null),
      h("nav", { class: "pager", "aria-label": "Codes" }, pageLink("Previous", to(code - 1)), pageLink("Next", to(code + 1)))),
    h("div", { class: "overview" },
      found.pictures && some(level, [code])(0, `Picture of code ${code}`, "large"),
      figures([
        ["rank", `${count(found.rank + 1)} of ${count(found.alphabet)}`],
        ["times", count(found.count)],
        ["counted", `${count(found.counted.samples)} of ${count(found.counted.of)} samples`],
      ])),
    h("section", {}, h("h2", {}, "Samples in which it occurs most"),
      found.samples.length
        ? h("ul", { class: "tiles" }, found.samples.map((one) =>
          h("li", {}, h("a", { href: `#/samples/${one.number}`, title: one.key },
            h("span", { class: "frame" }, thumbnail(one.number, one.key)),
            h("span", { class: "key" }, ending(one.key)),
            h("span", { class: "label" }, `${count(one.times)} times`)))))
        : h("p", { class: "empty" }, "It does not occur in what was counted.")),
    h("section", {}, h("h2", {}, "What stands beside it"),
      h("div", { class: "sides" }, SIDES.filter(([side]) => found.neighbours[side]?.length).map(([side, title]) =>
        neighbours(title, found.neighbours[side], level, found.pictures))),
      h("p", { class: "muted small" }, "Lift: how many times more often than if neighbours were independent.")));
  const go = (href) => href !== null && (location.hash = href, true);
  return {
    title: `Code ${code}`,
    keys: { ArrowLeft: () => go(to(code - 1)), ArrowRight: () => go(to(code + 1)), Escape: () => { location.hash = `#/codebook/${level}`; } },
  };
}

function neighbours(title, found, level, pictures) {
  const draw = pictures ? some(level, found.map((one) => one.code)) : null;
  return h("div", {}, h("h3", {}, title),
    table(`Codes ${title.toLowerCase()}`, [...(draw ? [["", "picture"]] : []), ["Code", "number"], ["Times", "number"], ["Lift", "number"]],
      found.map((one, index) => [
        ...(draw ? [draw(index, `Picture of code ${one.code}`)] : []),
        h("a", { href: `#/codebook/${level}/${one.code}` }, String(one.code)), count(one.times), figure(one.lift, 1),
      ])));
}

function some(level, codes) {
  return strip(`codebook/${level}/some.png`, { codes: codes.join(",") }, codes.length);
}

/** One picture of many codes below each other; gives the elements that show one of them. */
function strip(path, values, length) {
  const image = `url("${url(path, values)}")`;
  return (index, label, kind = "") => h("span", {
    class: `code-picture ${kind}`, role: "img", "aria-label": label, style: {
      "background-image": image,
      "background-size": `100% ${length * 100}%`,
      "background-position": `0 ${length > 1 ? (index / (length - 1)) * 100 : 0}%`,
    },
  });
}

function curve(shares) {
  const points = [[0, 0], ...shares.map((share, place) => [(place + 1) / shares.length, share])];
  const line = points.map(([x, y]) => `${(x * 160).toFixed(1)},${(60 - y * 60).toFixed(1)}`).join(" ");
  const half = shares.findIndex((share) => share >= 0.5);
  const text = `Half of all ids are of ${percent((half + 1) / shares.length)} of the codes`;
  return h("figure", { class: "curve" },
    svg("svg", { viewBox: "-2 -2 164 64", role: "img", "aria-label": text },
      svg("polyline", { points: "0,60 160,0", class: "even" }), svg("polyline", { points: line, class: "line" })),
    h("figcaption", { class: "muted small" }, text));
}

function pageLink(text, href) {
  return href ? h("a", { class: "button", href }, text) : h("span", { class: "button off", "aria-disabled": "true" }, text);
}
