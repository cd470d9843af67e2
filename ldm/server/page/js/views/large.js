/** A picture, large: its settings, and what to do with it. Arrows show the next ones. */
import { getJson } from "../api.js";
import { send } from "../events.js";
import { newSeed } from "../settings.js";
import { button, download, el, fileName } from "./dom.js";

/** @typedef {{picture: any, body: any, partial?: boolean}} Entry */

const HIDDEN = ["draft", "record", "prompt", "seed"];
const LABELS = {
  negative_prompt: "Negative prompt", num_inference_steps: "Steps", guidance_scale: "Guidance",
  variation_seed: "Variation seed", variation_strength: "Variation strength",
};

/** @type {Entry[]} */
let all = [];
let index = 0;
const image = el("img", {});
const title = el("h2", { id: "large-title" });
const facts = el("dl", { class: "facts" });
const note = el("p", { class: "soft hint", role: "status" });
const far = el("input", { type: "range", min: "0.05", max: "1", step: "0.05", value: "0.25", id: "far" });
const farOut = el("output", { for: "far" }, "0.25");
const needBody = [];  // buttons that need all of the settings
const inGallery = [];

const dialog = el("dialog", { class: "large", "aria-labelledby": "large-title" });

/** @param {Entry} entry */
function whole({ body, picture }) {
  const { draft, record, ...rest } = body;
  return { ...rest, seed: picture.seed ?? body.seed };
}

/**
 * Do something with a picture.
 * @param {string} action "same", "vary", or one of "use" @param {Entry} entry
 */
export function act(action, entry, strength = 0.25) {
  const body = whole(entry);
  if (action === "same") send("draw", { body });
  else if (action === "vary") {
    send("draw", { body: { ...body, variation_seed: newSeed(), variation_strength: strength } });
  } else send("use", { action, picture: entry.picture, body });
  dialog.close();
}

const now = () => all[index];
const textOf = (value) => (typeof value === "string" && value.startsWith("data:") ? "a picture"
  : typeof value === "object" ? JSON.stringify(value, (_, v) => (
    typeof v === "string" && v.startsWith("data:") ? "a picture" : v)) : `${value}`);

function show() {
  const entry = now();
  const { picture, body } = entry;
  image.src = picture.url;
  image.alt = body.prompt || "a picture without a prompt";
  title.textContent = body.prompt || "A picture without a prompt";
  const rows = Object.entries(body).filter(([name]) => !HIDDEN.includes(name));
  facts.replaceChildren(
    ...[["Seed", picture.seed], ["Size", `${picture.width} × ${picture.height}`],
      ...rows.filter(([name]) => !["width", "height"].includes(name))
        .map(([name, value]) => [LABELS[name] ?? name.replaceAll("_", " "), textOf(value)])]
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, `${value}`))));
  note.textContent = entry.partial
    ? "The pictures that it was drawn from were not kept when the page was reloaded." : "";
  for (const one of needBody) one.disabled = Boolean(entry.partial);
  for (const one of inGallery) one.hidden = !entry.picture;
  before.disabled = index === 0;
  after.disabled = index === all.length - 1;
}

/** @param {number} by */
function move(by) {
  index = Math.max(0, Math.min(all.length - 1, index + by));
  show();
}

async function copy() {
  try {
    const { parameters } = await getJson(`/api/pictures/${now().picture.id}`);
    await navigator.clipboard.writeText(parameters);
    note.textContent = "Copied: the settings as text, as A1111's web UI writes them.";
  } catch (error) {
    note.textContent = `Not copied: ${error.message}`;
  }
}

function removeNow() {
  send("remove", { entry: now() });
  dialog.close();
}

const before = button("‹", () => move(-1), { class: "turn", "aria-label": "The one before" });
const after = button("›", () => move(1), { class: "turn", "aria-label": "The next one" });

/** @param {Entry} entry @param {Entry[]} others what the arrows go through */
export function open(entry, others) {
  all = others;
  index = others.indexOf(entry);
  show();
  dialog.showModal();
}

export function start() {
  const doing = (/** @type {string} */ action) => () => act(action, now());
  const same = button("Again", doing("same"), { title: "The same seed draws the same picture" });
  const fresh = button("New seed", doing("again"), { title: "Draw it from another seed" });
  const vary = button("Vary", () => act("vary", now(), Number(far.value)), { class: "primary" });
  needBody.push(same, fresh, vary);
  far.addEventListener("input", () => { farOut.value = far.value; });
  const removing = button("Remove", removeNow);
  inGallery.push(removing);
  dialog.append(
    el("div", { class: "large-picture" }, before, image, after),
    el("div", { class: "large-about" },
      title, facts,
      el("div", { class: "row" }, same, fresh,
        button("Use as start", doing("start")),
        button("How it was drawn", () => { send("select", now()); dialog.close(); })),
      el("div", { class: "vary" },
        el("div", { class: "field slider" },
          el("label", { for: "far" }, "How far to vary"), far, farOut), vary),
      el("div", { class: "row" },
        button("Settings into the form", doing("settings")),
        button("Copy settings", copy),
        button("Download", () => download(now().picture.url, fileName(now()))),
        removing),
      note,
      button("Close", () => dialog.close(), { class: "quiet close" })));
  dialog.addEventListener("keydown", (event) => {
    if (/** @type {any} */ (event.target).tagName === "INPUT") return;
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "Delete") removeNow();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
}
