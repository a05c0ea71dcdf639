// The view that writes: tokens as they come, shaded by probability; a token's alternatives, and going on from one of them.
import { $, el, events, percent, picture, problem, reach, roving, statement } from "./dom.js";
import { distribution } from "./sampling.js";

// What stands behind the prompt: {id, vocabulary, piece, p, afterText}; afterText: whether a text stands for all before it.
let tokens = [];
let prompt = "", running = null, chosen = -1, next = null;

export const written = () => prompt + tokens.map(({ piece }) => piece).join("");

export function knobs() {
  const number = (id) => Number($(id).value);
  return { temperature: number("temperature"), max_tokens: number("max_tokens"), topk: number("topk"), topp: number("topp"),
    min_p: number("min_p"), seed: $("seed").value === "" ? null : number("seed") };
}

function meant() { // the model that is chosen, and whose vocabulary its ids are of
  const { value, dataset } = $("model").selectedOptions[0] ?? { value: "", dataset: {} };
  return { model: value, vocabulary: dataset.vocabulary, positions: dataset.positions };
}

async function write() {
  running?.abort();
  const mine = running = new AbortController(), began = performance.now(), { model, vocabulary } = meant();
  const body = { ...knobs(), prompt: written(), model };
  problem(null);
  $("stop-writing").disabled = false;
  $("written").hidden = false;
  $("write-status").textContent = "writing …";
  let first = 0, count = 0, finish = "", afterText = true;
  draw();
  try {
    for await (const event of events("api/write", body, mine.signal)) {
      if (event.sql) {
        statement($("write-sql"), event);
        continue;
      }
      count += 1;
      first ||= performance.now() - began;
      finish = event.finish_reason ?? "";
      add({ id: event.token_id, vocabulary, piece: event.piece, p: Math.exp(event.logprob), afterText, isEnd: event.finish_reason === "stop" && !event.piece });
      afterText = event.is_text;
    }
    const rate = count > 1 ? `, ${((count - 1) / (performance.now() - began - first) * 1000).toFixed(0)} a second` : "";
    const end = finish === "stop" ? "; it ended with the end-of-text token" : "";
    $("write-status").textContent = `${count} token${count === 1 ? "" : "s"}${rate}${end}`;
  } catch (error) {
    if (running === mine) $("write-status").textContent = error.name === "AbortError" ? `stopped after ${count} tokens` : "";
    problem(error);
  } finally {
    if (running === mine) {
      running = null;
      $("stop-writing").disabled = true;
    }
  }
}

function draw() {
  $("text").replaceChildren(el("span", { className: "given", textContent: prompt }));
  tokens.forEach(show);
  mark();
}

function add(token) {
  tokens.push(token);
  show(token, tokens.length - 1);
  mark();
}

function show({ piece, p, isEnd }, i) {
  const told = isEnd ? "end of text" : charts.visible(piece) || "nothing to see yet"; // such as half a character
  const button = el("span", { role: "button", className: "token", "--p": p, textContent: piece.replace(/\n/g, "⏎\n") || (isEnd ? "∎" : "·"), tabIndex: -1,
    title: isEnd ? `end of text, ${percent(p)}` : percent(p), "aria-label": `${told}, ${percent(p)}` }); // a button would not wrap
  button.addEventListener("click", () => choose(i).catch(problem));
  $("text").append(button);
}

function mark() {
  const buttons = [...$("text").querySelectorAll(".token")];
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
  reach(buttons, chosen >= 0 ? chosen : 0);
}

async function choose(i) {
  problem(null);
  chosen = i;
  mark();
  const of = tokens, before = prompt + tokens.slice(0, i).map(({ piece }) => piece).join("");
  if (!tokens[i].afterText) return none("Before this token stands what no text has: bytes that are no whole character, U+0000 or a special token. What else could have stood here cannot be asked.");
  const { model, vocabulary, positions } = meant(), { id, vocabulary: own } = tokens[i];
  const found = await picture("next", { prompt: before, model });
  if (tokens !== of || chosen !== i) return; // another text since, or another token
  next = { ...found.rows[0], at: i, vocabulary, now: own === vocabulary ? id : null };
  statement($("alternatives-sql"), found);
  const outgrown = next.n_tokens > positions ? ` These follow the last ${positions} tokens, the model's window. The text has outgrown it, and was written from fewer: there the token may have had another probability.` : "";
  tell(`After “${[...before].slice(-60).join("")}”. Choose one, and the text goes on from there. Pale ones are cut off by the knobs.${outgrown}`);
}

function none(why) {
  next = null;
  $("alternatives-list").replaceChildren();
  $("alternatives-sql").replaceChildren();
  tell(why);
}

function tell(what) {
  $("alternatives-told").textContent = what;
  $("alternatives").hidden = false;
  offer();
  $("alternatives").focus({ preventScroll: true });
  $("alternatives").scrollIntoView({ block: "nearest" });
}

function offer() { // as the knobs are
  if (!next || $("alternatives").hidden) return;
  const shares = distribution(next.logits, knobs());
  $("alternatives-list").replaceChildren(...next.tokens.slice(0, 12).map((token, rank) => {
    const { p, cut } = shares[rank], isSpecial = next.special.includes(next.ids[rank]); // its name in a text is plain text
    const barred = isSpecial ? "a special token" : token.includes("\uFFFD") ? "a part of a character" : ""; // no text goes on from it
    const button = el("button", { type: "button", className: cut ? "cut" : "", disabled: barred !== "", title: barred },
      el("span", { className: "name", textContent: charts.visible(token) }),
      el("span", { className: "track" }, el("span", { className: "fill", "--p": p })),
      el("span", { className: "share", textContent: percent(p) }));
    button.addEventListener("click", () => goOn(next.ids[rank], token, Math.exp(next.logits[rank] - next.logits[0])
      / next.logits.reduce((sum, logit) => sum + Math.exp(logit - next.logits[0]), 0)));
    return el("li", { className: next.ids[rank] === next.now ? "chosen" : "" }, button);
  }));
}

function goOn(id, piece, p) {
  tokens = [...tokens.slice(0, next.at), { id, vocabulary: next.vocabulary, piece, p, afterText: true }];
  chosen = -1;
  $("alternatives").hidden = true;
  write();
  $("text").lastChild.focus();
}

export function start() {
  $("write-form").addEventListener("submit", (event) => {
    event.preventDefault();
    prompt = $("prompt").value;
    tokens = [];
    chosen = -1;
    $("alternatives").hidden = true;
    write();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("write-form").requestSubmit();
  });
  $("stop-writing").addEventListener("click", () => running?.abort());
  for (const id of ["temperature", "topk", "topp", "min_p"]) $(id).addEventListener("input", offer);
  roving($("text"));
  $("text").addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.matches(".token")) {
      event.preventDefault();
      event.target.click();
    }
  });
  charts.colourBar($("text-bar"), "probability of a token", 0.42);
}
