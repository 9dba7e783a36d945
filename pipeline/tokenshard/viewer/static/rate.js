// A sample at lower rates: fewer levels, fewer codes.

import { get, url } from "./api.js";
import { figure, figures, h, ofWhom, soon } from "./dom.js";

/** Sliders for the rate; ``draw`` gets the address of the picture at that rate, null for the full rate. */
export function ratePanel(state, draw) {
  const panel = h("section", { class: "rate" }, h("p", { class: "muted" }, "…"));
  get("rates", {}, state.signal).then((choices) => panel.replaceChildren(...filled(state, choices, draw)), (error) => {
    if (error.name !== "AbortError") panel.replaceChildren(h("p", { class: "muted" }, error.message));
  });
  return panel;
}

function filled(state, choices, draw) {
  const rate = { levels: choices.levels, codes: 0 };
  const facts = h("div", { "aria-live": "polite" });
  const change = soon(async () => {
    const asked = { levels: rate.levels < choices.levels ? rate.levels : 0, codes: rate.codes, frame: state.frame };
    const full = !asked.levels && !asked.codes;
    try {
      facts.classList.add("busy");
      const found = await get(`samples/${state.number}/rate`, asked, state.signal);
      draw(full ? null : url(`samples/${state.number}/rate.png`, asked));
      facts.replaceChildren(said(found, state.sample.codes));
    } catch (error) {
      if (error.name !== "AbortError") facts.replaceChildren(h("p", { class: "message" }, error.message));
    } finally {
      facts.classList.remove("busy");
    }
  });
  state.listeners.push(change);
  change();
  const sizes = [choices.codebook, ...choices.sizes];
  return [
    h("h3", {}, "Rate"),
    choices.levels > 1 && slider("Levels", 1, choices.levels, choices.levels, (value) => {
      rate.levels = value;
      change();
      return `${value} of ${choices.levels}`;
    }),
    sizes.length > 1 && slider("Codes", 0, sizes.length - 1, sizes.length - 1, (value) => {
      const size = sizes[sizes.length - 1 - value];
      rate.codes = size === choices.codebook ? 0 : size;
      change();
      return `${size.toLocaleString("en-US")} of ${choices.codebook.toLocaleString("en-US")}`;
    }),
    facts,
    h("p", { class: "muted small" }, `As transcode --levels and --codebook-size would make it; shares of codes ${ofWhom(choices.counted)}.`),
  ].filter(Boolean);
}

function slider(name, min, max, value, changed) {
  const said = h("output", {});
  const input = h("input", {
    type: "range", min: String(min), max: String(max), value: String(value), "aria-label": name,
    oninput: () => { said.textContent = changed(Number(input.value)); input.setAttribute("aria-valuetext", said.textContent); },
  });
  said.textContent = changed(value);
  return h("label", { class: "slider" }, h("span", {}, name), input, said);
}

function said(found, codes) {
  const ids = codes.ids / codes.levels * found.levels;
  return figures([
    ["bits, order 0", figure(found.bits, 0), "Bits of the sample's ids by the shares of codes in what was counted"],
    ["bits a token", figure(found.bits / Math.max(1, ids)), "The same for each id"],
    ["bits a pixel", figure(found.bits_per_pixel, 3)],
    found.stored_bits !== null && ["bits stored", figure(found.stored_bits, 0), "Bits of the sample's streams in the shard"],
    ["PSNR, full rate", found.same ? "full rate" : `${figure(found.psnr, 1)} dB`, "Against the reconstruction at the full rate"],
    found.psnr_original !== null && ["PSNR, original", `${figure(found.psnr_original, 1)} dB`, "Against the original"],
  ]);
}
