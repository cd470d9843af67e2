/** Pictures by drop, paste and file picker; a picture that ldm made brings its settings. */
import { openSheet, takeBase } from "./canvas.js";
import { request } from "./api.js";
import { on, send } from "./events.js";
import { bitmapOf, dataUrl, keep } from "./pictures.js";
import { write } from "./settings.js";

const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("dropped"));
/** @type {File|null} */
let dropped = null;
/** @type {{settings: any, without: string[]}|null} */
let found = null;  // its settings, and what they lack

/** Use a picture for an argument. @param {string} name @param {Blob} file */
export async function use(name, file) {
  if (name === "ip_adapter_image") keep(name, await shrunk(file));
  else await takeBase(/** @type {any} */ (name), file);
  document.getElementById(`drop-${name}`).closest("details").open = true;
}

/** Return a picture as a data URL, no larger than what an image encoder reads. */
async function shrunk(file, longest = 512) {
  const bitmap = await bitmapOf(file);
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  if (scale === 1) return dataUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** @param {(done: any) => Promise<any>} work */
const reported = (work) => work.catch((error) => send("error", error));

/** Read the settings of a PNG; null if it has none. @param {File} file */
async function settingsOf(file) {
  if (file.type !== "image/png") return null;
  const answer = await request("/api/read", { json: { image: await dataUrl(file) } });
  const { arguments: settings, model, missing, notes } = await answer.json();
  return { settings: { ...settings, model: model ?? undefined }, without: [...missing, ...notes] };
}

/** Have the user say what a picture is for. @param {File} file */
async function offer(file) {
  await bitmapOf(file);  // raises words for what is no picture
  dropped = file;
  const image = dialog.querySelector("img");
  image.src = await dataUrl(file);
  found = await settingsOf(file).catch(() => null);
  const words = document.getElementById("dropped-settings");
  const without = found?.without.length ? ` To be given again: ${found.without.join(", ")}.` : "";
  words.textContent = found
    ? `It was drawn of “${found.settings.prompt ?? ""}”.${without}`
    : "It holds no settings of a drawing.";
  const button = /** @type {HTMLElement} */ (dialog.querySelector('[data-for="settings"]'));
  button.hidden = !found;
  for (const name of ["control", "ip"]) {
    const target = name === "ip" ? "ip_adapter_image" : "control_image";
    /** @type {HTMLElement} */ (dialog.querySelector(`[data-for="${target}"]`)).hidden =
      document.getElementById(`${name}-options`).hidden;
  }
  dialog.showModal();
}

function choose(event) {
  const name = event.target.dataset.for;
  if (name === undefined) return;
  dialog.close();
  if (name === "settings") {
    write(found.settings);
    /** @type {any} */ (document.getElementById("random-seed")).checked = false;
    document.getElementById("prompt").focus();
  } else if (name) reported(use(name, dropped));
}

const filesOf = (event) => [...(event.dataTransfer ?? event.clipboardData)?.files ?? []];

/** A drop area of the form. @param {HTMLElement} area */
function listen(area) {
  const name = area.dataset.picture;
  const picker = area.querySelector("input");
  picker.addEventListener("change", () => {
    if (picker.files[0]) reported(use(name, picker.files[0]));
    picker.value = "";
  });
  area.addEventListener("drop", (event) => {
    const [file] = filesOf(event);
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    end();
    reported(use(name, file));
  });
  area.addEventListener("click", ({ target }) => {
    const action = /** @type {HTMLElement} */ (target).dataset.action;
    if (action === "sketch") openSheet(/** @type {any} */ (name));
    if (action === "remove") keep(/** @type {any} */ (name), null);
  });
}

const end = () => document.documentElement.classList.remove("over-page");

function show({ name, url }) {
  const area = document.getElementById(`drop-${name}`);
  if (!area) return;
  const image = area.querySelector("img");
  image.hidden = !url;
  if (url) image.src = url;
  else image.removeAttribute("src");
  image.alt = url ? "The chosen picture" : "";
  /** @type {HTMLElement} */ (area.querySelector('[data-action="remove"]')).hidden = !url;
  area.closest("details").classList.toggle("used", Boolean(url));
}

export function start() {
  for (const area of document.querySelectorAll(".drop")) listen(/** @type {any} */ (area));
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.documentElement.classList.add("over-page");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) end(); });
  for (const name of ["drop", "paste"]) {
    document.addEventListener(name, (event) => {
      end();
      const [file] = filesOf(event);
      if (!file) return;
      event.preventDefault();
      reported(offer(file));
    });
  }
  dialog.addEventListener("click", choose);
  on("kept", show);
}
