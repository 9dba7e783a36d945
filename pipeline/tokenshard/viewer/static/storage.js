// Where the bytes are, what a token costs, and what was rejected.

import { get } from "./api.js";
import { bar, bytes, count, figure, figures, h, ofWhom, percent, table } from "./dom.js";

const ROLES = { code: "codes", stream: "streams beside the ids", length: "lengths and sizes", key: "keys", label: "labels", metadata: "metadata", model: "codec models", sidecar: "side files", footer: "footers, page headers" };

/** Shows `#/storage`. */
export async function show(place, { signal }) {
  const [found, rejects] = await Promise.all([get("storage", {}, signal), get("rejects", {}, signal)]);
  const total = found.columns.reduce((sum, column) => sum + column.bytes, 0) || 1;
  const perToken = found.tokens ? (8 * found.bytes) / found.tokens : 0;
  place.append(
    figures([
      ["bytes", bytes(found.bytes)],
      found.raw_bytes > 0 && ["raw", `${bytes(found.raw_bytes)} (1 : ${figure(found.raw_bytes / Math.max(1, found.bytes), 1)})`],
      ["bits a token", figure(perToken, 3), "Of whole shard files"],
      ["a sample", bytes(found.samples ? found.bytes / found.samples : 0)],
      ["shards", count(found.num_shards)],
      ["row groups", count(found.row_groups)],
      found.deleted > 0 && ["deleted", count(found.deleted)],
    ]),
    h("section", {}, h("h2", {}, "By role"), parts(found, total)),
    h("section", {}, h("h2", {}, "Bits a token, by level"), levels(found)),
    h("section", {}, h("h2", {}, "By column"),
      table("Bytes by column", [["Column", ""], ["Role", "muted"], ["Bytes", "number"], ["Share", "number"], ["", "measure"]],
        found.columns.map((column) => [column.name, ROLES[column.role], bytes(column.bytes), percent(column.bytes / total), bar(column.bytes / total)])),
      found.shards_read < found.num_shards && h("p", { class: "muted small" }, `Estimated from ${count(found.shards_read)} of ${count(found.num_shards)} shards, spread evenly.`)),
    h("section", {}, h("h2", {}, "Shards"),
      table("Shards", [["File", ""], ["Samples", "number"], ["Bytes", "number"], ["Row groups", "number"], ["Deleted", "number"], ["First key", "key"], ["Last key", "key"]],
        found.shards.map((shard) => [shard.path, count(shard.rows), bytes(shard.bytes), count(shard.row_groups), count(shard.deleted), shard.first, shard.last])),
      found.shards.length < found.num_shards && h("p", { class: "muted small" }, `The first ${count(found.shards.length)} of ${count(found.num_shards)}.`)),
    h("section", {}, h("h2", {}, "Rejects"), ...rejected(rejects)));
  return { title: "Storage", keys: {} };
}

function parts(found, total) {
  const sums = new Map();
  for (const column of found.columns) sums.set(column.role, (sums.get(column.role) ?? 0) + column.bytes);
  const roles = [...sums].sort((a, b) => b[1] - a[1]);
  return h("div", {},
    h("div", { class: "stack", "aria-hidden": "true" }, roles.map(([role, size]) =>
      h("span", { class: `part ${role}`, style: { "flex-grow": String(size / total) }, title: `${ROLES[role]}: ${bytes(size)}` }))),
    h("ul", { class: "legend" }, roles.map(([role, size]) =>
      h("li", {}, h("span", { class: `swatch ${role}`, "aria-hidden": "true" }), `${ROLES[role]} `, h("b", {}, bytes(size)), h("span", { class: "muted" }, ` ${percent(size / total)}`)))));
}

function levels(found) {
  const widest = Math.max(...found.levels.map((level) => level.log2_alphabet));
  const lines = (level) => [
    ["log₂ of the alphabet", level.log2_alphabet, "even"],
    ["order-0 entropy", level.order0_entropy, "even"],
    level.context_bits !== null && ["context model, pilot", level.context_bits, "even"],
    ["stored", level.bits_per_token, ""],
  ].filter(Boolean);
  return h("div", { class: "levels" }, found.levels.map((level, number) =>
    h("div", { class: "level" },
      h("h3", {}, found.levels.length > 1 ? `Level ${number}` : "Ids", h("small", { class: "muted" }, ` ${level.codec}, ${count(level.codes_used)} of ${count(level.alphabet)} codes seen`)),
      h("dl", { class: "bars" }, lines(level).map(([name, bits, kind]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, bar(bits / widest, kind), h("span", {}, figure(bits, 3))))))),
  ), h("p", { class: "muted small" }, `Entropies ${ofWhom(found.counted)}; stored bits are those of all streams.`));
}

function rejected(found) {
  if (!found.total) return [h("p", { class: "empty" }, "No input was rejected.")];
  return [
    h("p", {}, `${count(found.total)} inputs were rejected${found.read < found.total ? `; reasons of ${count(found.read)} of them` : ""}.`),
    table("Rejects by reason", [["Stage", ""], ["Error", ""], ["Inputs", "number"], ["", "measure"]],
      found.reasons.map((reason) => [reason.stage, reason.error, count(reason.count), bar(reason.count / found.reasons[0].count)])),
    h("h3", {}, found.rows.length < found.total ? `The first ${count(found.rows.length)}` : "All"),
    table("Rejected inputs", [["Key", "key"], ["Stage", ""], ["Error", ""], ["Message", "value"]],
      found.rows.map((row) => [row.key, row.stage, row.error, row.message])),
  ];
}
