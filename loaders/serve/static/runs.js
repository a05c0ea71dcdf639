// The view of training runs: curves that grow, samples, checkpoints beside each other, and the button that stops a run.
import { $, bytes, el, picture, problem, statement } from "./dom.js";

const SOON = 1000, LATER = 5000; // ms until the next look at least, of a run that learns and of others
const SHARE = 5, MOST = 10000; // a look is followed by so many times its length without one: many open pages leave the server its time
let comparing = null, timer = 0, isOpen = false, picked = false, allowed = false, run = null, sampled = 0, model = "", saved = "", known = [];

async function look() {
  clearTimeout(timer);
  const began = performance.now();
  try {
    const found = await picture("runs");
    statement($("runs-sql"), found);
    list(found.rows);
    run = found.rows.find(({ run_id }) => String(run_id) === $("run").value) ?? null;
    $("run-pictures").hidden = !run;
    $("run-status").textContent = run ? described(run) : "There is no run yet: SELECT llm_train('model', n_steps) makes one.";
    $("stop-run").hidden = !(allowed && run?.status === "running");
    if (run) await Promise.all([curves(), checkpoints()]);
  } catch (error) {
    problem(error);
  }
  clearTimeout(timer);
  const pause = Math.max(run?.status === "running" ? SOON : LATER, Math.min(MOST, SHARE * (performance.now() - began)));
  if (isOpen && !document.hidden) timer = setTimeout(look, pause);
}

function list(rows) {
  const kept = $("run").value, names = rows.map((r) => `${r.run_id}: ${r.model}, ${r.status}`);
  if (names.join() === [...$("run").options].map(({ text }) => text).join()) return;
  $("run").replaceChildren(...rows.map((r, i) => el("option", { value: r.run_id, textContent: names[i] })));
  const first = rows.find((r) => r.status === "running") ?? rows.find((r) => r.step > 1) ?? rows[0];
  const isThere = picked && rows.some((r) => String(r.run_id) === kept);
  $("run").value = isThere ? kept : first?.run_id ?? ""; // until one is picked, the run that learns
  if ($("run").value !== kept) sampled = 0;
}

function described(r) {
  const parts = [r.status, `step ${(r.step ?? 0).toLocaleString("en")}${r.n_steps ? ` of ${r.n_steps.toLocaleString("en")}` : ""}`];
  if (r.loss !== null) parts.push(`loss ${charts.number(r.loss)}`);
  if (r.tokens_per_second) parts.push(`${Math.round(r.tokens_per_second).toLocaleString("en")} tokens a second`);
  if (r.status === "running" && r.seconds_left !== null) parts.push(`${Math.ceil(r.seconds_left)} s left`);
  return parts.join(", ");
}

async function curves() {
  const of = run, found = await picture("curve", { run_id: of.run_id }), { rows } = found;
  if (run !== of) return; // another look has begun since
  const x = [Math.min(rows[0]?.step ?? 0, 1), Math.max(of.status === "running" ? of.n_steps ?? 0 : 0, rows.at(-1)?.step ?? 1, 2)];
  const points = (key) => rows.map((row) => [row.step, row[key]]);
  const validation = points("val_loss").filter(([, y]) => y !== null);
  const series = [{ name: "training", colour: "blue", kind: "line", points: points("loss") }];
  if (validation.length) series.push({ name: "validation", colour: "orange", kind: "dots", points: validation });
  $("loss-legend").replaceChildren(charts.legend(series));
  charts.curves($("loss"), { title: "Loss", series, x, height: 300 });
  charts.curves($("lr"), { title: "Learning rate", series: [{ name: "learning rate", colour: "violet", kind: "line", points: points("lr") }], x, zero: true });
  statement($("loss-sql"), found);
  statement($("lr-sql"), found);
  const due = sampled && of.status === "running" && validation.length > sampled - 1;
  sampled = validation.length + 1; // now: when the sample is there, another run may be shown
  if (due) await sample();
}

async function sample() {
  const prompt = $("sample-prompt").value, of = run.model; // both may be others when the answer is there
  const found = await picture("sample", { prompt, model: of }), { text, step } = found.rows[0];
  $("samples").prepend(el("li", {}, el("small", { textContent: `${of}, step ${step.toLocaleString("en")}` }), el("b", { textContent: prompt }), text));
  while ($("samples").children.length > 20) $("samples").lastChild.remove();
  statement($("sample-sql"), found);
}

async function checkpoints() {
  const of = run, found = await picture("checkpoints", { model: of.model }), { rows } = found;
  if (run !== of) return;
  statement($("checkpoints-sql"), found);
  const some = rows.some((row) => row.id !== null);
  $("no-checkpoints").hidden = some;
  $("no-checkpoints").textContent = `${run.model} has no checkpoint: SELECT llm_checkpoint_save('${run.model.replaceAll("'", "''")}') makes one.`;
  $("some-checkpoints").hidden = !some;
  const state = JSON.stringify([run.model, rows.filter(({ id }) => id !== null)]);
  if (state === saved || !some) return;
  saved = state;
  known = rows;
  const name = ({ id, step, note }) => id === null ? note : `${id}: step ${step}${note ? `, ${note}` : ""}`;
  const options = (some) => some.map((row) => el("option", { value: row.id ?? "", textContent: name(row) }));
  const [one, other] = [$("one").value, $("other").value], has = (id) => model === run.model && rows.some((row) => String(row.id) === id);
  $("one").replaceChildren(...options(rows.filter(({ id }) => id !== null)));
  $("other").replaceChildren(...options(rows));
  $("one").value = has(one) ? one : rows.findLast(({ id }) => id !== null).id;
  $("other").value = has(other) ? other : "";
  model = run.model;
  await compare(rows);
}

async function compare(rows = known) { // only the pair last asked for: an earlier answer may come later
  comparing?.abort();
  const { signal } = comparing = new AbortController();
  const a = Number($("one").value), b = $("other").value === "" ? null : Number($("other").value);
  const found = await picture("diff", { a, b }, signal), two = [a, b].map((id) => rows.find((row) => row.id === id));
  const cells = (what, value) => el("tr", {}, el("th", { scope: "row", textContent: what }), ...two.map((row) => el("td", { textContent: row ? value(row) : "–" })));
  const heading = (row) => el("th", { scope: "col", textContent: row ? row.id === null ? "the model" : `checkpoint ${row.id}` : "–" });
  $("both").replaceChildren(el("thead", {}, el("tr", {}, el("td"), ...two.map(heading))), el("tbody", {},
    cells("step", (row) => row.step.toLocaleString("en")), cells("run", (row) => row.run_id ?? "–"), cells("saved", (row) => row.id === null ? "–" : new Date(row.created_at).toLocaleString("en-GB")),
    cells("size", (row) => bytes(row.bytes)), cells("note", (row) => row.note || "–")));
  const changed = found.rows.filter((row) => row.relative !== null);
  const shown = changed.slice(0, 15).map(({ name, relative }) => ({ label: name, value: relative, text: charts.number(relative) }));
  if (shown.some(({ value }) => value > 0)) charts.bars($("diff"), { title: "Relative difference of tensors", rows: shown, colour: "violet", room: 190 });
  else charts.text($("diff"), "No tensor differs.");
  statement($("diff-sql"), found);
}

export function start(settings) {
  allowed = settings.allow_training;
  $("run").addEventListener("change", () => { picked = true; sampled = 0; look(); });
  $("one").addEventListener("change", () => compare().catch(problem));
  $("other").addEventListener("change", () => compare().catch(problem));
  document.addEventListener("visibilitychange", () => { if (isOpen && !document.hidden) look(); });
  $("sample-form").addEventListener("submit", (event) => {
    event.preventDefault();
    problem(null);
    sample().catch(problem);
  });
  $("stop-run").addEventListener("click", async () => {
    problem(null);
    try {
      const found = await picture("stop", { model: run.model });
      $("stop-run").hidden = true;
      $("run-status").textContent = found.rows[0].stopping ? "stopping after this step …" : "no run of the model is going on";
      statement($("runs-sql"), found);
    } catch (error) {
      problem(error);
    }
  });
}

export function open() {
  isOpen = true;
  sampled = 0;
  look();
}

export function close() {
  isOpen = false;
  clearTimeout(timer);
}
