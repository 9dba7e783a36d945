// Search in the pages of documents.

import { get, picture, problem } from "./api.js";
import { announce, count, figure, h } from "./dom.js";
import { thumbnail } from "./samples.js";

/** Shows `#/search?q=…`. */
export async function show(place, { values, signal }) {
  const query = values.get("q") ?? "";
  const field = h("input", { type: "search", value: query, placeholder: "What is asked for …", "data-search": true, "aria-label": "Query", autocomplete: "off", maxlength: "1000" });
  const answers = h("div", {});
  place.append(
    h("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); location.hash = `#/search?q=${encodeURIComponent(field.value.trim())}`; } },
      h("label", { class: "field wide" }, h("span", {}, "Query"), field), h("button", { type: "submit" }, "Search")),
    answers);
  if (query) answer(answers, query, signal);
  else answers.append(h("p", { class: "empty" }, "Pages are scored by late interaction (MaxSim) on their stored codes. The first search loads the encoder."));
  return { title: query ? `Search: ${query}` : "Search", keys: { Escape: () => { location.hash = "#/search"; } }, ready: () => query || field.focus() };
}

async function answer(place, query, signal) {
  place.replaceChildren(h("p", { class: "loading" }, "Searching …"));
  try {
    const found = await get("search", { q: query }, signal);
    const best = found.hits[0]?.score || 1;
    const text = `${count(found.hits.length)} pages, ${found.exact ? `all ${count(found.scored)} scored` : `the best of ${count(found.scored)} candidates among ${count(found.pages)}`}`;
    announce(text);
    place.replaceChildren(
      h("p", { class: "muted" }, `${text}${found.index ? "; with an index" : ""}.`),
      h("ol", { class: "hits" }, found.hits.map((hit) => h("li", {},
        h("a", { href: `#/samples/${hit.number}?q=${encodeURIComponent(query)}` },
          h("span", { class: "frame page" }, thumbnail(hit.number, hit.key),
            picture(`samples/${hit.number}/matches.png`, { q: query }, "", { class: "over", loading: "lazy" })),
          h("span", { class: "said" },
            h("b", {}, hit.document), h("span", { class: "muted" }, hit.page === null ? "" : ` page ${hit.page}`),
            h("span", { class: "score", title: "MaxSim" }, figure(hit.score, 3)),
            h("span", { class: "meter", "aria-hidden": "true" }, h("span", { style: { width: `${Math.max(0, hit.score / best) * 100}%` } })),
            h("span", { class: "text" }, hit.text)))))));
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(problem(error));
  }
}
