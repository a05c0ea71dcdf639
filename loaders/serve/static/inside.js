// The view that looks inside: tokens, attention, what each layer would say, and what comes next at any temperature.
import { $, el, percent, picture, problem, reach, roving, statement } from "./dom.js";
import { distribution } from "./sampling.js";
import { written } from "./write.js";

const MOST = 96; // tokens that a picture of attention shows
let seen = null; // {prompt, model, tokens, heads}
let next = null, asked = null, wanted = null, current = [0, 0]; // wanted: the model last asked for, shown yet or not

async function look() {
  asked?.abort();
  const { signal } = asked = new AbortController();
  const model = $("model").value, given = $("inside-prompt").value;
  wanted = model;
  problem(null);
  $("inside-status").textContent = "looking …";
  try {
    if (!given) throw new Error("The text is empty: there is nothing to look at.");
    const whole = await picture("tokens", { prompt: given, model }, signal);
    const most = Math.min(MOST, $("model").selectedOptions[0].dataset.positions), cut = whole.rows.length > most;
    const prompt = cut ? beginning(whole.rows, most) : given;
    const found = cut ? await picture("tokens", { prompt, model }, signal) : whole;
    const tokens = found.rows.map(({ token }) => token);
    $("tokens").replaceChildren(...found.rows.map(({ token, token_id }) =>
      el("span", {}, charts.visible(token), el("small", { textContent: token_id }))));
    $("inside-pictures").hidden = false;
    statement($("tokens-sql"), found);
    const [after, attention, lens] = await Promise.all(["next", "attention", "lens"].map((name) => picture(name, { prompt, model }, signal)));
    next = after.rows[0];
    seen = { prompt, model, tokens };
    statement($("next-sql"), after);
    bars();
    drawLens(lens);
    drawGrid(attention);
    await large(...(current[0] < seen.heads.length && current[1] < seen.heads[0].length ? current : [0, 0]), signal);
    $("inside-status").textContent = told(tokens.length, whole.rows.length, cut);
  } catch (error) {
    if (error.name !== "AbortError") {
      $("inside-status").textContent = "";
      wanted = null;
    }
    problem(error);
  }
}

function beginning(rows, most) { // of a text, as many tokens as end with a whole character: pictures are asked for by text
  const bytes = rows.map((row) => Uint8Array.from(row.bytes.match(/../g), (two) => parseInt(two, 16)));
  const isInside = ([first]) => first >> 6 === 2; // a byte that continues a character
  let n = most;
  while (n && isInside(bytes[n])) n -= 1;
  if (!n) throw new Error(`Of this text, no beginning of at most ${most} tokens ends with a whole character.`);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes.slice(0, n).flatMap((some) => [...some])));
}

function told(n, all, cut) {
  if (cut) return `The first ${n} tokens of ${all}${all === 1024 ? " or more" : ""}`;
  return n === 1 ? "1 token" : `${n} tokens`;
}

export function bars() { // at once, as the knob moves: the logits are here
  if (!next) return;
  const temperature = Number($("inside-temperature").value), shares = distribution(next.logits, { temperature });
  const rows = next.tokens.slice(0, 15).map((label, i) => ({ label, value: shares[i].p, text: percent(shares[i].p) }));
  const to = [0.02, 0.05, 0.1, 0.2, 0.5].find((full) => rows[0].value <= full) ?? 1;
  charts.bars($("next-bars"), { title: "Probabilities of the next token", rows, to });
  const rest = 1 - rows.reduce((sum, { value }) => sum + value, 0);
  $("next-told").textContent = `${percent(Math.max(0, rest))} is left for the other ${(next.logits.length - rows.length).toLocaleString("en")} tokens. A full bar is ${percent(to)}.`;
}

function drawLens(found) {
  const layers = new Map();
  for (const row of found.rows) layers.set(row.layer, [...(layers.get(row.layer) ?? []), row]);
  const last = Math.max(...layers.keys());
  const name = (layer) => layer === 0 ? "embeddings" : layer === last ? `layer ${layer - 1}: the model` : `layer ${layer - 1}`;
  $("lens").replaceChildren(
    el("caption", { textContent: "After each layer, the most probable tokens if the model ended there" }),
    el("tbody", {}, ...[...layers].map(([layer, rows]) => el("tr", {}, el("th", { scope: "row", textContent: name(layer) }),
      ...rows.map(({ token, probability }) => el("td", {}, el("div", { "--p": probability, title: token }, charts.visible(token),
        el("small", { textContent: percent(probability) }))))))));
  statement($("lens-sql"), found);
}

function floats(base64) { // little-endian, as tensors are
  const bytes = Uint8Array.from(atob(base64.replace(/\s/g, "")), (c) => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

function drawGrid(found) {
  seen.heads = found.rows.map(({ shape: [heads, n], weights }) => {
    const all = floats(weights);
    return Array.from({ length: heads }, (_, head) => all.subarray(head * n * n, (head + 1) * n * n));
  });
  const grid = $("grid");
  grid.style.gridTemplateColumns = `max-content repeat(${seen.heads[0].length}, minmax(24px, 6.5rem))`;
  grid.replaceChildren(...seen.heads.flatMap((heads, layer) => [el("span", { className: "layer", textContent: layer, "aria-hidden": "true" }),
    ...heads.map((weights, head) => {
      const button = el("button", { type: "button", "aria-label": `Layer ${layer}, head ${head}`, title: `layer ${layer}, head ${head}` }, canvas(weights));
      button.addEventListener("click", () => large(layer, head).catch(problem));
      return button;
    })]));
  statement($("grid-sql"), found);
}

function canvas(weights) {
  const n = seen.tokens.length, drawn = el("canvas", { width: n, height: n }), context = drawn.getContext("2d");
  const colour = d3.rgb(getComputedStyle(document.documentElement).getPropertyValue("--blue")), image = context.createImageData(n, n);
  weights.forEach((weight, i) => image.data.set([colour.r, colour.g, colour.b, Math.round(255 * weight)], 4 * i));
  context.putImageData(image, 0, 0);
  return drawn;
}

async function large(layer, head, signal) {
  const of = seen, { prompt, model, tokens } = of;
  current = [layer, head];
  const buttons = [...$("grid").querySelectorAll("button")], at = layer * seen.heads[0].length + head;
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === at));
  reach(buttons, at);
  const found = await picture("head", { prompt, layer, head, model }, signal);
  if (seen !== of || current[0] !== layer || current[1] !== head) return;
  $("head-card").classList.toggle("wide", tokens.length > 30);
  const n = tokens.length, values = new Float32Array(n * n);
  for (const row of found.rows) values[row.query_position * n + row.key_position] = row.weight;
  $("h-head").textContent = `Layer ${layer}, head ${head}`;
  charts.heat($("head"), { title: `Attention of layer ${layer}, head ${head}`, labels: tokens, values, rowLabel: "of", columnLabel: "to", causal: true });
  statement($("head-sql"), found);
}

export function start() {
  $("inside-form").addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  $("take-over").addEventListener("click", () => {
    $("inside-prompt").value = written() || $("prompt").value;
    look();
  });
  $("inside-temperature").addEventListener("input", bars);
  roving($("grid"), () => seen?.heads[0].length ?? 1);
  charts.colourBar($("head-bar"), "weight");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    [...$("grid").querySelectorAll("button")].forEach((button, i) => button.replaceChildren(canvas(seen.heads.flat()[i])));
  });
}

export function open() {
  if (wanted !== $("model").value) look();
}
