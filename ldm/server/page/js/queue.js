/**
 * What is drawn, one after another: drawings wait for each other, and a draft of live mode gives
 * way to all. Parts that show it listen to "begin", "status", "picture", "draft" and "end".
 */
import { draw as drawOnServer } from "./api.js";
import { on, send } from "./events.js";
import { read, rollSeed } from "./settings.js";

/** @typedef {import("./events.js").Body} Body */
/** @typedef {{body: Body, draft: boolean, controller: AbortController, shown: boolean}} Run */

/** @type {Run|null} */
let current = null;
/** @type {Body[]} */
const waiting = [];

export const busy = () => current !== null && !current.draft;
export const running = () => current;

/** Draw a body when its turn has come. @param {Body} body */
export function draw(body) {
  waiting.push(body);
  if (current?.draft) current.controller.abort();
  if (!current) next();
  else send("waiting", { count: waiting.length });
}

/** Draw a draft now, in the place of another one. @param {Body} body */
export function drawDraft(body) {
  if (busy() || waiting.length) return;
  current?.controller.abort();
  run(body, true);
}

/** Stop what is being drawn; what waits behind it is drawn. */
export function cancel() {
  current?.controller.abort();
}

function next() {
  const body = waiting.shift();
  if (body) run(body, false);
}

/** @param {Body} body @param {boolean} draft */
async function run(body, draft) {
  const controller = new AbortController();
  const mine = (current = { body, draft, controller, shown: false });
  const about = { body, draft, waiting: () => waiting.length };
  send("begin", about);
  let state = "failed", failure = null;
  try {
    const last = await drawOnServer(draft ? body : { ...body, record: true }, {
      signal: controller.signal,
      onStatus: (status) => {
        if (current !== mine) return;
        mine.shown ||= Boolean(status.preview);
        send("status", { ...about, status });
      },
    });
    state = last.state;
    if (current === mine) finished(last, about);
  } catch (error) {
    failure = error;
    if (controller.signal.aborted || error.name === "AbortError") state = "cancelled";
    else if (current === mine) send("error", error);
  }
  if (current !== mine) return;  // a newer draft has taken its place
  current = null;
  send("end", { ...about, state, error: failure });
  next();
}

/** @param {import("./api.js").Status} last */
function finished(last, { body, draft }) {
  const { num_images_per_prompt, ...one } = body;
  last.pictures.forEach((picture, i) => {
    send(draft ? "draft" : "picture", {
      picture, body: { ...one, seed: picture.seed ?? body.seed }, index: i,
      count: last.pictures.length,
    });
  });
}

let drawn = "";  // the form's settings when it was drawn last

/**
 * Draw what the form says. Live mode has shown this seed's draft already: it takes a new one only
 * for the same settings again.
 */
function drawForm() {
  const live = /** @type {HTMLInputElement} */ (document.getElementById("live")).checked;
  if (!live || JSON.stringify(read()) === drawn) rollSeed();
  const body = read();
  drawn = JSON.stringify(body);
  draw(body);
}

export function start() {
  on("draw", ({ body }) => (body ? draw(body) : drawForm()));
  on("cancel", cancel);
  document.getElementById("cancel").addEventListener("click", cancel);
}
