// Requests to the viewer. Answers depend on the dataset alone, so that each address carries its state.

import { h } from "./dom.js";

let state = "";

const TITLES = {
  damaged: "Something in this dataset is damaged",
  storage: "The storage did not answer",
  missing: "There is no such thing here",
  spec: "This cannot be shown",
  refused: "The viewer refused this",
  offline: "The viewer does not answer",
};

export class ApiError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

/** The address of an answer; values that are empty are left out. */
export function url(path, values = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) query.set(name, value === true ? "1" : value);
  }
  if (state) query.set("v", state);
  const text = query.toString();
  return `/api/${path}${text ? `?${text}` : ""}`;
}

/** An answer as JSON. Raises ApiError with what went wrong and what to do. */
export async function get(path, values = {}, signal = undefined) {
  return fetched(url(path, values), signal);
}

async function fetched(address, signal) {
  let response;
  try {
    response = await fetch(address, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("offline", "It may have been stopped. Start it again: tokenshard view OUT");
  }
  const answer = response.headers.get("content-type")?.includes("json") ? await response.json() : {};
  if (!response.ok) throw new ApiError(answer.error?.kind ?? "failed", answer.error?.message ?? `status ${response.status}`);
  return answer;
}

/** What the viewer shows; asked first. */
export async function open() {
  state = "";
  const dataset = await get("dataset");
  state = dataset.etag;
  return dataset;
}

/** An error as a part of the page. */
export function problem(error, again = null) {
  console.warn(error);
  return h("section", { class: "problem", role: "alert" },
    h("h2", {}, TITLES[error.kind] ?? "Something went wrong"),
    h("p", { class: "message" }, error.message),
    again && h("button", { type: "button", onclick: again }, "Try again"));
}

/** A picture; where it cannot be had, the reason in its place. */
export function picture(path, values, alt, properties = {}) {
  const image = h("img", { src: url(path, values), alt, decoding: "async", ...properties });
  // few pixels are shown as such; where there are more than fit, they are smoothed
  image.addEventListener("load", () => image.classList.toggle("enlarged", 1.5 * image.naturalWidth < image.clientWidth));
  image.addEventListener("error", async () => {
    const asked = image.getAttribute("src");
    const reason = await fetched(asked).then(() => "it is no picture", (error) => error.message);
    if (image.getAttribute("src") !== asked) return;
    image.replaceWith(h("span", { class: "no-picture", role: "img", "aria-label": `${alt}: ${reason}`, title: reason }, reason));
  });
  return image;
}
