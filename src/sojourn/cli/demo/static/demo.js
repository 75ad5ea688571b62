"use strict";

// Twenty requests at once, on the page "Two tabs".
const burst = document.getElementById("burst-button");
if (burst) {
  const dots = document.getElementById("burst-dots");
  const result = document.getElementById("burst-result");
  const shown = document.getElementById("tabs-count");
  const MANY = 20;
  burst.hidden = false;
  burst.addEventListener("click", async () => {
    burst.disabled = true;
    result.textContent = `Sending ${MANY} requests…`;
    dots.replaceChildren(...Array.from({ length: MANY }, () => document.createElement("i")));
    try {
      const before = await count();
      await Promise.all(Array.from(dots.children, async (dot) => {
        await post("/tabs/add", burst.form);
        dot.className = "done";
      }));
      const after = await count();
      shown.textContent = after;
      const lost = before + MANY - after;
      result.textContent = lost === 0
        ? `${MANY} requests at once: from ${before} to ${after}. None was lost.`
        : `${MANY} requests at once: from ${before} to ${after}. ${lost} lost.`;
    } catch (error) {
      result.textContent = `It did not work: ${error.message}. Load this page again.`;
    }
    burst.disabled = false;
  });
}

async function count() {
  return (await ask("/api/get?key=tabs")).value ?? 0;
}

// The time left, and a warning before it is over; asking does not extend the session.
const warning = document.getElementById("warning");
const left = document.getElementById("left");
let end = null;
let timer = null;

if (warning) {
  warning.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("/time/stay", event.target);
      warning.hidden = true;
      look();
    } catch {
      location.reload();
    }
  });
  // What came with this page is not stored before the page has left: ask a moment later.
  look();
}

async function look() {
  clearTimeout(timer);
  let found;
  try {
    found = await ask("/time/left");
  } catch {
    timer = setTimeout(look, 30000);
    return;
  }
  if (found.left === null) {
    over();
    return;
  }
  end = performance.now() + found.left * 1000;
  const calm = found.left - found.warn;
  if (calm > 0) {
    warning.hidden = true;
    show();
    // Another tab may use the session meanwhile, so ask again before saying anything.
    timer = setTimeout(look, Math.min(calm, 60) * 1000 + 50);
  } else {
    warn();
  }
}

function warn() {
  const seconds = Math.max(0, Math.round((end - performance.now()) / 1000));
  show();
  warning.querySelector("[data-left]").textContent = words(seconds);
  warning.hidden = false;
  timer = setTimeout(seconds % 5 === 0 ? look : warn, 1000);
}

function over() {
  warning.hidden = false;
  warning.querySelector("p").textContent = "Your session has ended. Load the page again to go on.";
  warning.querySelector("form").hidden = true;
  if (left) {
    left.textContent = "0 seconds";
  }
}

function show() {
  if (left) {
    left.textContent = words(Math.max(0, Math.round((end - performance.now()) / 1000)));
  }
}

function words(seconds) {
  let [number, unit] = [seconds, "second"];
  for (const [size, name] of [[60, "minute"], [3600, "hour"], [86400, "day"]]) {
    const whole = Math.round(seconds / size);
    if (whole >= 2 || (whole === 1 && seconds > 0.99 * size)) {
      [number, unit] = [whole, name];
    }
  }
  return number === 1 ? `1 ${unit}` : `${number} ${unit}s`;
}

setInterval(() => {
  if (end !== null && left && (!warning || warning.hidden)) {
    show();
  }
}, 1000);

async function ask(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  if (!response.ok) {
    throw new Error(`the site answered ${response.status}`);
  }
  return response.json();
}

async function post(path, form) {
  const response = await fetch(path, {
    method: "POST",
    headers: { Accept: "application/json" },
    body: new URLSearchParams(new FormData(form)),
  });
  if (!response.ok) {
    throw new Error(`the site answered ${response.status}`);
  }
  return response.json();
}
