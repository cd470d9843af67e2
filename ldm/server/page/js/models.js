/** What the server offers; and the model that draws, which is loaded when it is chosen. */
import { getJson, request } from "./api.js";
import { send } from "./events.js";

const select = /** @type {HTMLSelectElement} */ (document.getElementById("model"));

/** Have the server say what can be chosen. */
async function load() {
  send("choices", await getJson("/page/choices.json"));
}

async function change() {
  const name = select.value;
  document.getElementById("status").textContent = `Loading ${name}`;
  select.disabled = true;
  try {
    await request("/api/models/current", { json: { name } });
    document.getElementById("status").textContent = `${name} is loaded`;
  } catch (error) {
    send("error", error);
    document.getElementById("status").textContent = `${name} is not loaded`;
  } finally {
    select.disabled = false;
  }
  await load();
}

export function start() {
  select.addEventListener("change", () => change().catch((error) => send("error", error)));
  load().catch((error) => send("error", error));
}
