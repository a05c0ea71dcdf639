// The view of models and adapters: sizes, versions, who uses them, and what is in memory.
import { $, bytes, el, picture, problem, statement } from "./dom.js";

async function look() {
  problem(null);
  try {
    const [models, memory] = await Promise.all([picture("models"), picture("memory")]);
    draw(models);
    remember(memory);
    await users();
  } catch (error) {
    problem(error);
  }
}

function draw(found) {
  const { rows } = found;
  charts.bars($("sizes"), { title: "Bytes of each model in the database", colour: "green", room: 160,
    rows: rows.map(({ model, bytes: n }) => ({ label: model, value: n, text: bytes(n) })) });
  $("models-list").replaceChildren(...rows.map(card));
  statement($("models-sql"), found);
}

function card(m) {
  const many = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
  const facts = {
    parameters: m.n_params.toLocaleString("en"),
    shape: `${many(m.n_layer, "layer")}, ${many(m.n_head, "head")}, width ${m.d_model}, ${m.n_positions.toLocaleString("en")} positions`,
    vocabulary: m.tokenizer_tokens ? many(m.tokenizer_tokens, "token") : `${m.vocab.toLocaleString("en")} ids, no tokenizer`,
    version: `step ${m.step.toLocaleString("en")}`,
    stored: bytes(m.bytes),
    ...(m.base && { "adapter of": m.base, rank: `${m.r}, alpha ${m.alpha}: ${m.targets.join(", ")}` }),
    ...(m.adapters.length && { "adapters on it": m.adapters.join(", ") }),
    ...(m.sharers.length && { "shares weights with": m.sharers.join(", ") }),
    ...(m.running.length && { "learns in run": m.running.join(", ") }),
    ...(m.checkpoints && { checkpoints: `${m.checkpoints}, ${bytes(m.checkpoint_bytes)}` }),
  };
  return el("article", {}, el("h4", {}, m.model, ...(m.is_default ? [el("span", { className: "tag", textContent: "default" })] : []),
    ...(m.base ? [el("span", { className: "tag", textContent: "adapter" })] : [])),
    el("dl", {}, ...Object.entries(facts).flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", { textContent: value })])));
}

function remember(found) {
  const head = ["kind", "model", "version", "bytes", "shared", "entries"];
  const cell = (row, name) => name === "bytes" ? (row.bytes === null ? "–" : bytes(row.bytes)) : name === "shared" ? (row.shared ? "yes" : "no") : name === "version" ? (row.version ?? "–").slice(0, 12) : row[name] ?? "–";
  const kind = (name) => name === "bytes" || name === "entries" ? "number" : "";
  $("memory").replaceChildren(el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col", textContent: name, className: kind(name) })))),
    el("tbody", {}, ...found.rows.map((row) => el("tr", {}, ...head.map((name) => el("td", { textContent: cell(row, name), className: kind(name), "data-name": name }))))));
  if (!found.rows.length) $("memory").replaceChildren(el("tbody", {}, el("tr", {}, el("td", { textContent: "Nothing yet: write something first." }))));
  statement($("memory-sql"), found);
}

async function users() { // after the rest: where the system does not tell, the rest stands
  $("users").replaceChildren();
  const found = await picture("sessions"), { rows } = found;
  $("no-users").textContent = rows.length ? "" : "None now. Models below 8 MB are in the memory of each session alone.";
  if (rows.length) $("users").replaceChildren(el("thead", {}, el("tr", {}, ...["model", "sessions", "roles"].map((name) => el("th", { scope: "col", textContent: name, className: name === "sessions" ? "number" : "" })))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, el("td", { textContent: row.model, "data-name": "model" }), el("td", { textContent: row.sessions, className: "number", "data-name": "sessions" }), el("td", { textContent: row.roles.join(", "), "data-name": "roles" })))));
  statement($("users-sql"), found);
}

export function start() {
  $("refresh").addEventListener("click", look);
}

export const open = look;
