// The page: which view is shown, which model is meant, and knobs that two views have.
import { $, el, picture, problem, request } from "./dom.js";
import * as inside from "./inside.js";
import * as models from "./models.js";
import * as runs from "./runs.js";
import * as write from "./write.js";

const views = { write, inside, runs, models };
let shown = null;

function show() {
  const name = location.hash.slice(1) in views ? location.hash.slice(1) : location.hash === "#main" && shown ? shown : "write";
  if (name === shown) return;
  if (shown) views[shown].close?.();
  shown = name;
  for (const other of Object.keys(views)) $(`view-${other}`).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  problem(null);
  views[name].open?.();
}

function temperature(value) { // one knob in two places
  for (const id of ["temperature", "inside-temperature"]) {
    $(id).value = value;
    $(`${id}-now`).textContent = Number(value).toFixed(2).replace(/0$/, "");
  }
}

async function start() {
  for (const id of ["temperature", "inside-temperature"]) {
    $(id).addEventListener("input", () => {
      temperature($(id).value);
      inside.bars();
    });
  }
  const [settings, { rows }] = await Promise.all([request("api/settings").then((response) => response.json()), picture("models")]);
  const usable = rows.filter(({ tokenizer_tokens }) => tokenizer_tokens > 0);
  $("model").replaceChildren(...usable.map(({ model, base, n_positions }) => el("option", { value: model, textContent: model, "data-positions": n_positions, "data-vocabulary": base ?? model })));
  $("model").value = (usable.find(({ is_default }) => is_default) ?? usable.find(({ base }) => !base) ?? { model: "" }).model;
  $("model").addEventListener("change", () => views[shown].open?.());
  write.start();
  inside.start();
  runs.start(settings);
  models.start();
  addEventListener("hashchange", show);
  show();
  if (!usable.length) problem(new Error("The database has no model with weights and a vocabulary: pg-gpt2 load-model brings one."));
}

start().catch(problem);
