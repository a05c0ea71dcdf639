// Elements, requests, and the statement under a picture.

export const $ = (id) => document.getElementById(id);

export function el(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (key in element && key !== "role") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export function problem(error) { // shown until the next request
  if (error?.name === "AbortError") return;
  if (error) console.info(error.message); // not an error of the page
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}

let key = sessionStorage.getItem("key") ?? "";

export async function request(path, body, signal) {
  for (;;) {
    const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
    const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    if (response.status === 401 && told?.error?.code === "invalid_api_key") {
      await askForKey();
      continue;
    }
    throw new Error(told?.error?.message ?? `the server answered ${response.status}`);
  }
}

let asking;
function askForKey() { // once, however many requests wait for it
  asking ??= new Promise((resolve) => {
    const dialog = $("ask-key");
    dialog.addEventListener("close", () => {
      key = $("key").value;
      sessionStorage.setItem("key", key);
      asking = undefined;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export const picture = async (name, body = {}, signal) => (await request(`api/pictures/${name}`, body, signal)).json();

export async function* events(path, body, signal) {
  const reader = (await request(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// The statement as it ran, its parameters below it. What is copied runs anywhere: PREPARE and EXECUTE, with the same parameters.
export function statement(host, { sql, parameters }) {
  const told = parameters.map((value, i) => `\n-- $${i + 1} = ${literal(value)}`).join("");
  let box = host.querySelector("pre");
  if (!box) {
    box = el("pre");
    const copy = el("button", { type: "button", textContent: "Copy" });
    copy.addEventListener("click", async () => {
      copy.textContent = await copied(host.copied, box) ? "Copied" : "Selected: press Ctrl+C";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    host.replaceChildren(el("details", { className: "sql", open: innerWidth >= 640 }, el("summary", { textContent: "SQL" }), box, copy));
  }
  box.replaceChildren(sql, el("span", { className: "parameters", textContent: told }));
  host.copied = parameters.length
    ? `PREPARE picture AS ${sql};\nEXECUTE picture(${parameters.map(literal).join(", ")});\nDEALLOCATE picture;\n` : `${sql};\n`;
}

async function copied(text, box) { // without TLS, only pages of this machine may write to the clipboard
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(box);
    return false;
  }
}

function literal(value) {
  if (value === null) return "NULL";
  if (typeof value === "number") return String(value);
  return value.includes("\\") ? `E'${value.replaceAll("\\", "\\\\").replaceAll("'", "''")}'` : `'${value.replaceAll("'", "''")}'`;
}

// Arrow keys move in a row or a grid of buttons, of which Tab reaches one; columns: how many are beside each other.
export function roving(host, columns = () => 1) {
  host.addEventListener("keydown", (event) => {
    const buttons = [...host.querySelectorAll("button, [role=button]")], at = buttons.indexOf(document.activeElement);
    const down = columns(), moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -down, ArrowDown: down };
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : at + moves[event.key];
    if (at < 0 || !(to in buttons)) return;
    event.preventDefault();
    reach(buttons, to);
    buttons[to].focus();
  });
}

export function reach(buttons, at) { // which of them Tab reaches
  buttons.forEach((button, i) => { button.tabIndex = i === at ? 0 : -1; });
}

export const percent = (p) => p >= 0.1 ? `${(100 * p).toFixed(0)}%` : p >= 0.0001 ? `${(100 * p).toPrecision(2)}%` : "0%";

export function bytes(n) {
  for (const [size, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) if (n >= size) return `${(n / size).toPrecision(3)} ${unit}`;
  return `${n} B`;
}
