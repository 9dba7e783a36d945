// The codes of a sample as a picture, and how often each is used.

import { get, picture, url } from "./api.js";
import { bar, choice, count, h, ofWhom, table } from "./dom.js";

const LISTED = 24;

/** A figure with the ids of a level as colours; pointing at one tells which it is. */
export function codesPanel(state) {
  const { number, sample, signal } = state;
  const asked = { level: 0, by: "id" };
  const screen = h("div", { class: "screen codes-view" });
  const said = h("output", { class: "stamp" }, " ");
  const use = h("div", {});
  const save = h("a", { class: "button quiet", download: "" }, "PNG ↓");
  let found = null;
  const frame = () => sample.clip ? Math.ceil(state.frame / sample.clip.step) : 0;

  async function draw() {
    const values = { level: asked.level, by: asked.by, frame: frame() };
    save.href = url(`samples/${number}/codes.png`, { ...values, download: true });
    try {
      found = await get(`samples/${number}/codes`, { level: asked.level, frame: values.frame }, signal);
    } catch (error) {
      if (error.name !== "AbortError") screen.replaceChildren(h("p", { class: "message" }, error.message));
      return;
    }
    const [rows, columns] = found.shape;
    const alt = `Codes of level ${asked.level} as colours, ${rows} by ${columns}`;
    const image = picture(`samples/${number}/codes.png`, values, alt, { class: "pixels", style: { "--ratio": String(columns / rows) } });
    image.addEventListener("mousemove", (event) => point(event, image));
    image.addEventListener("mouseleave", () => { said.textContent = " "; });
    image.addEventListener("click", (event) => { const id = point(event, image); if (id !== null) location.hash = `#/codebook/${asked.level}/${id}`; });
    screen.replaceChildren(image);
    use.replaceChildren(...useTable(found, asked.level));
  }

  function point(event, image) {
    if (!found?.ids) return null;
    const [rows, columns] = found.shape;
    const box = image.getBoundingClientRect();
    const row = Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows));
    const column = Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns));
    const id = found.ids[row * columns + column];
    if (id === undefined || id < 0) {
      said.textContent = "no code here";
      return null;
    }
    const rank = found.codes.find((one) => one.code === id)?.rank;
    said.textContent = `row ${row}, column ${column}: code ${id}, rank ${count(rank + 1)} of ${count(found.alphabet)}`;
    return id;
  }

  state.listeners.push(() => draw());
  draw();
  const levels = Array.from({ length: sample.codes.levels }, (_, level) => [level, `level ${level}`]);
  return h("figure", { class: "stage" },
    h("figcaption", {}, h("h2", {}, "Codes"),
      levels.length > 1 && choice("Level", levels, 0, (value) => { asked.level = Number(value); draw(); }),
      choice("Colour", [["id", "id"], ["rank", "rank of use"]], "id", (value) => { asked.by = value; draw(); }),
      save),
    screen, said, use);
}

function useTable(found, level) {
  const most = found.codes[0]?.times ?? 1;
  return [
    h("h3", {}, `${count(found.distinct)} different codes`),
    table("Codes of this sample", [["Code", "number"], ["Here", "number"], ["", "measure"], ["Rank", "number"], ["Use", "number"]],
      found.codes.slice(0, LISTED).map((one) => [
        h("a", { href: `#/codebook/${level}/${one.code}` }, String(one.code)),
        count(one.times), bar(one.times / most), count(one.rank + 1), count(one.count),
      ])),
    h("p", { class: "muted small" }, `${found.codes.length > LISTED ? `The ${LISTED} most frequent here. ` : ""}Rank and use: ${ofWhom(found.counted)}.`),
  ];
}
