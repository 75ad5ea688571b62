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

// The time left, on the page of that name; asking every second does not extend the session.
const left = document.getElementById("left");
if (left) {
  setInterval(async () => {
    try {
      left.textContent = words((await ask("/time/left")).remaining);
    } catch {
      // The site is away; the next second asks again.
    }
  }, 1000);
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
