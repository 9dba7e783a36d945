// Grids as maps: relief or uncertainty of a window, closer and farther.

import { get, picture } from "./api.js";
import { choice, count, figure, figures, h, percent } from "./dom.js";

const NAMES = { elevation: "Elevation", tokens: "Tokens alone", width: "Width of the tokens", conformal: "Conformal width", uncertainty: "Uncertainty (95 %)" };

/** Shows `#/maps?grid=…&band=…&level=…&box=west,south,east,north`. */
export async function show(place, { values, signal }) {
  const { grids } = await get("maps", {}, signal);
  const grid = grids.find((one) => one.id === values.get("grid")) ?? grids[0];
  const band = grid.bands.includes(values.get("band")) ? values.get("band") : grid.bands[0];
  const asked = { grid: grid.id, band, level: values.get("level") ?? "", box: values.get("box") ?? "" };
  const to = (changes) => { location.hash = `#/maps?${new URLSearchParams(Object.entries({ ...asked, ...changes }).filter(([, value]) => value !== ""))}`; };
  const facts = await get("map", asked, signal);
  const alt = `${NAMES[band]} of ${grid.name}, ${facts.columns} by ${facts.rows} cells`;
  const image = picture("map.png", asked, alt);
  const ratio = (facts.columns / facts.rows) / facts.stretch;
  const said = h("output", { class: "stamp" }, " ");
  const move = (dx, dy, zoom) => { if (facts.placed) to({ box: moved(facts, dx, dy, zoom).join(",") }); };
  image.addEventListener("mousemove", (event) => { said.textContent = placed(facts, at(event, image, facts)); });
  image.addEventListener("mouseleave", () => { said.textContent = " "; });
  image.addEventListener("dblclick", (event) => {
    const [x, y] = at(event, image, facts);
    const [west, east, south, north] = facts.extent;
    move((x - west) / (east - west) - 0.5, (y - south) / (north - south) - 0.5, 0.5);
  });
  const button = (text, label, ...how) => h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: () => move(...how) }, text);
  place.append(
    h("div", { class: "filters" },
      grids.length > 1 && choice("Grid", grids.map((one) => [one.id, one.name]), grid.id, (value) => to({ grid: value, level: "", box: "" })),
      choice("Layer", grid.bands.map((name) => [name, NAMES[name]]), band, (value) => to({ band: value })),
      choice("Level", [["", "as fits"], ...grid.levels.map((level) => [level, level === 1 ? "1 (cells)" : `${level} × ${level}`])], asked.level, (value) => to({ level: value })),
      facts.placed && h("div", { class: "compass", role: "group", "aria-label": "Move" },
        button("+", "Closer", 0, 0, 0.5), button("−", "Farther", 0, 0, 2),
        button("←", "West", -0.5, 0, 1), button("↑", "North", 0, 0.5, 1), button("↓", "South", 0, -0.5, 1), button("→", "East", 0.5, 0, 1),
        asked.box && h("button", { type: "button", class: "quiet", onclick: () => to({ box: "" }) }, "All"))),
    h("figure", { class: "map" },
      h("div", { class: "sea", style: { "aspect-ratio": String(ratio), "max-width": `calc(72vh * ${ratio})` } }, image),
      h("figcaption", {}, scale(facts), said)),
    figures([
      ["grid", grid.name],
      ["shown", `${count(facts.columns)} × ${count(facts.rows)} cells, level ${facts.level}${facts.whole ? "" : ", a part"}`],
      ["of", `${count(grid.width)} × ${count(grid.height)}`],
      ["values", facts.least === null ? "none" : `${figure(facts.least, 2)} to ${figure(facts.greatest, 2)} ${facts.units ?? ""}`],
      ["with a value", percent(facts.valid)],
      ["bound", grid.bound],
      grid.datum && ["datum", grid.datum],
    ]));
  return {
    title: "Map",
    keys: {
      "+": () => move(0, 0, 0.5), "=": () => move(0, 0, 0.5), "-": () => move(0, 0, 2),
      ArrowLeft: () => move(-0.25, 0, 1), ArrowRight: () => move(0.25, 0, 1), ArrowUp: () => move(0, 0.25, 1), ArrowDown: () => move(0, -0.25, 1),
      Escape: () => { if (asked.box) to({ box: "" }); },
    },
  };
}

/** West, south, east, north of the part that is shown, moved by shares of it and zoomed. */
function moved({ extent: [west, east, south, north] }, dx, dy, zoom) {
  const [width, height] = [east - west, north - south];
  const [x, y] = [(west + east) / 2 + dx * width, (south + north) / 2 + dy * height];
  return [x - (width * zoom) / 2, y - (height * zoom) / 2, x + (width * zoom) / 2, y + (height * zoom) / 2].map((edge) => Number(edge.toPrecision(10)));
}

function at(event, image, { extent: [west, east, south, north] }) {
  const box = image.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return [west + x * (east - west), north - y * (north - south)];
}

function placed(facts, [x, y]) {
  if (!facts.placed) return `column ${Math.floor(x)}, row ${Math.floor(y)}`;
  if (!facts.geographic) return `${figure(x, 1)}, ${figure(y, 1)}`;
  const east = ((((x + 180) % 360) + 360) % 360) - 180;
  return `${Math.abs(y).toFixed(4)}° ${y < 0 ? "S" : "N"}  ${Math.abs(east).toFixed(4)}° ${east < 0 ? "W" : "E"}`;
}

function scale({ scale: { low, high, unit, colours, text }, log }) {
  if (!text) return h("span", {}, "all above zero, in grey");
  return h("div", { class: "scale" },
    h("span", {}, figure(low, 2)),
    h("span", { class: "ramp", style: { background: `linear-gradient(to right, ${colours.join(", ")})` }, role: "img", "aria-label": `Colours from ${figure(low, 2)} to ${figure(high, 2)} ${unit}` }),
    h("span", {}, `${figure(high, 2)} ${unit}`),
    h("span", { class: "muted" }, `${text}${log ? ", log scale" : "; land in grey, cells without a value hatched"}`));
}
