/** The picture being drawn: previews, progress, the result, and what to do with it. */
import { on, send } from "./events.js";

const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const picture = byId("picture");
const progress = byId("progress");
/** What is shown. @type {{picture: any, body: any}|null} */
let shown = null;
let strip = [];
let began = 0;
const SHORT = 400;  // ms in which a draft as a rule is done: no words for its waiting

/** @param {string} url @param {string} alt */
function show(url, alt) {
  byId("empty").hidden = true;
  picture.hidden = false;
  picture.src = url;
  picture.alt = alt;
}

function report(/** @type {string} */ words, aloud = false) {
  byId("status").textContent = words;
  if (aloud) byId("announce").textContent = words;
}

/** Words for how far a drawing is. @param {import("./api.js").Status} status */
function wordsOf(status, waiting) {
  const behind = waiting ? `; ${waiting} more of yours after it` : "";
  if (status.state === "queued" && status.place) {
    return `Waiting: ${status.place} ${status.place === 1 ? "picture is" : "pictures are"} `
      + `drawn before it${behind}`;
  }
  if (!status.steps) return `Waiting for its turn${behind}`;
  return `Step ${status.step} of ${status.steps}${behind}`;
}

const labelOf = (body) => `${body.prompt || "a picture without a prompt"}`;

function begin({ draft, waiting }) {
  began = performance.now();
  byId("cancel").disabled = draft;
  picture.setAttribute("aria-busy", "true");
  if (draft) return;
  byId("picture-actions").hidden = byId("strip").hidden = true;
  strip = [];
  progress.value = 0;
  report("Drawing", true);
}

function during({ status, draft, body, waiting }) {
  progress.value = status.steps ? status.step / status.steps : 0;
  if (status.preview) show(status.preview, `Preview: ${labelOf(body)}`);
  if (!draft || performance.now() - began > SHORT) report(wordsOf(status, waiting()));
}

/** Show a finished picture. */
function finish({ picture: one, body, count = 1 }, draft = false) {
  shown = { picture: one, body };
  show(one.url, labelOf(body));
  picture.classList.toggle("wide", one.width > one.height * 1.3);
  byId("picture-actions").hidden = false;
  byId("download").href = one.url;
  byId("download").download = `${labelOf(body).slice(0, 60).replace(/[^\p{L}\p{N}]+/gu, "-")}-${one.seed}.png`;
  const kind = draft ? "Draft" : count > 1 ? `${count} pictures` : "Finished";
  report(`${kind}: ${one.width} × ${one.height}, ${body.num_inference_steps ?? "the model's"} steps, seed ${one.seed}`);
}

function gather(detail) {
  strip.push(detail);
  finish(detail);
  if (strip.length !== detail.count || detail.count < 2) return;
  byId("strip").hidden = false;
  byId("strip").replaceChildren(...strip.map((each, i) => {
    const button = document.createElement("button");
    const image = new Image();
    Object.assign(image, { src: each.picture.url, alt: `Show picture ${i + 1}` });
    button.type = "button";
    button.append(image);
    button.addEventListener("click", () => finish(each));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  finish(strip[0]);
}

function end({ state, draft }) {
  byId("cancel").disabled = true;
  picture.removeAttribute("aria-busy");
  progress.value = state === "done" ? 1 : 0;
  if (draft) return;
  if (state === "done") byId("announce").textContent = byId("status").textContent;
  else report(state === "cancelled" ? "Cancelled" : "Not drawn", true);
}

function fail({ message }) {
  byId("error").hidden = false;
  byId("error").querySelector("p").textContent = message;
}

export function start() {
  on("begin", begin);
  on("begin", () => { byId("error").hidden = true; });
  on("status", during);
  on("draft", (detail) => {
    byId("strip").hidden = true;
    finish(detail, true);
  });
  on("picture", gather);
  on("end", end);
  on("waiting", ({ count }) => report(`${count} more of yours waiting`, true));
  on("error", fail);
  byId("error").querySelector("button").addEventListener("click", () => {
    byId("error").hidden = true;
    byId("prompt").focus();
  });
  byId("picture-actions").addEventListener("click", ({ target }) => {
    const action = target.dataset.use;
    if (action && shown) send("use", { action, ...shown });
  });
}
