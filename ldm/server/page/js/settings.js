/** The form ⇄ the JSON body of POST /api/draw. */
import { on, send } from "./events.js";
import { picture } from "./pictures.js";

/** @typedef {import("./events.js").Body} Body */

const form = /** @type {HTMLFormElement} */ (document.getElementById("settings"));
const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const STORED = "ldm.settings";
/** Fields that mean something only beside a picture or a choice. */
const BESIDE = {
  image: ["strength", "mask_blur"],
  control_image: [
    "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end",
  ],
  ip_adapter_image: ["ip_adapter_scale"],
  hires: ["hires_scale", "hires_strength"],
};
/** What is drawn before anything is typed. */
const FIRST = { prompt: "a red car on a blue background" };
const SIDES = ["left", "top", "right", "bottom"];

/** What the server offers: see `ldm/server/choices.py`. @type {any} */
export let choices = null;

/** The named fields of the form. @returns {(HTMLInputElement|HTMLSelectElement)[]} */
const fields = () => [...form.elements].filter((field) => field.name);

/** @returns {any} the value of a field; undefined if it is left to the model */
function valueOf(field) {
  if (field.type === "checkbox") return field.checked || undefined;
  if (field.value === "") return undefined;
  return ["number", "range"].includes(field.type) ? Number(field.value) : field.value;
}

/** Return the pixels to add on each side: left, top, right, bottom. */
export const margins = () => SIDES.map((side) => Number(byId(`extend-${side}`).value) || 0);

/** Return the body that draws what the form says. @returns {Body} */
export function read() {
  const body = Object.fromEntries(fields().map((field) => [field.name, valueOf(field)]));
  body.prompt ??= "";
  if (byId("random-seed").checked && body.seed === undefined) body.seed = newSeed();
  for (const name of ["image", "control_image", "ip_adapter_image"]) body[name] = picture(name);
  if (body.image) readStart(body);
  if (body.control_image) readControl(body);
  for (const [name, beside] of Object.entries(BESIDE)) {
    if (!body[name]) for (const each of beside) delete body[each];
  }
  body.loras = [...document.querySelectorAll("#loras input")].map(
    (input) => ({ name: input.dataset.lora, scale: Number(input.value) }),
  );
  if (!body.loras.length) delete body.loras;
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}

/** @param {Body} body */
function readStart(body) {
  const outpaint = margins();
  if (outpaint.some(Boolean)) {
    Object.assign(body, { outpaint, width: undefined, height: undefined, strength: undefined });
  } else if (picture("mask_image")) body.mask_image = picture("mask_image");
  if (!body.mask_image) delete body.mask_blur;
}

/** @param {Body} body */
function readControl(body) {
  const preprocessor = byId("preprocessor").value;
  if (preprocessor) body.control_image = { preprocessor, image: body.control_image };
  const controlnet = byId("controlnet").value;
  if (controlnet) body.controlnets = [controlnet];
}

/**
 * Put arguments into the form; those that are not named become what the model advises.
 * @param {Record<string, any>} settings @param {boolean} [whole] false leaves other fields alone
 */
export function write(settings, whole = true) {
  const advised = { ...choices?.defaults, num_images_per_prompt: 1 };
  for (const field of fields()) {
    if (field.name === "model" && !settings.model) continue;
    let value = settings[field.name];
    if (value === undefined || value === null) {
      if (!whole) continue;
      value = advised[field.name] ?? defaultOf(field);
    }
    if (field.type === "checkbox") field.checked = Boolean(value);
    else if (!(field.tagName === "SELECT") || hasOption(field, value)) field.value = value;
    if (field.type === "range") fit(field, value);
  }
  if (settings.loras) send("loras", settings.loras);
  showOutputs();
  send("change");
}

const defaultOf = (field) => field.defaultChecked || field.defaultValue
  || (field.tagName === "SELECT" ? "" : field.defaultValue);
const hasOption = (select, value) => [...select.options].some((one) => one.value === `${value}`);

/** Widen a slider for a value past its end, such as one of a dropped picture. */
function fit(field, value) {
  if (Number(value) > Number(field.max)) field.max = value;
  field.value = value;
}

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Put a new seed into the form if each drawing takes one. */
export function rollSeed() {
  if (byId("random-seed").checked || byId("seed").value === "") byId("seed").value = newSeed();
}

function showOutputs() {
  for (const output of form.querySelectorAll("output")) {
    output.value = byId(output.htmlFor[0]).value;
  }
}

/** @param {HTMLSelectElement} select @param {Record<string, string>|string[]} options */
export function fill(select, options, first) {
  const entries = Array.isArray(options) ? options.map((one) => [one, one]) : Object.entries(options);
  const all = first === undefined ? entries : [["", first], ...entries];
  const before = select.value;
  select.replaceChildren(...all.map(([value, label]) => new Option(label, value)));
  if (hasOption(select, before)) select.value = before;
}

/** Offer what the server has. */
function offer() {
  fill(byId("model"), choices.models);
  fill(byId("sampler"), choices.samplers, "the model's own");
  fill(byId("schedule"), choices.schedules, "the sampler's own");
  fill(byId("preprocessor"), choices.preprocessors, "nothing: it is one already");
  fill(byId("controlnet"), choices.controlnets, choices.able?.controlnet ? "the model's own" : undefined);
  byId("preprocessor").value ||= "scribble";
  byId("controlnet-field").hidden = !choices.controlnets.length;
  byId("control-options").hidden = !(choices.able?.controlnet || choices.controlnets.length);
  byId("ip-options").hidden = !choices.able?.ip_adapter;
  byId("num_inference_steps").max = Math.min(choices.limits.steps, 60);
  byId("num_images_per_prompt").max = choices.limits.pictures;
  byId("model").value = choices.current;
}

function store() {
  byId("strength").disabled = margins().some(Boolean);  // the new part is drawn from nothing
  const plain = Object.fromEntries(fields().map((field) => [field.name, valueOf(field)]));
  localStorage[STORED] = JSON.stringify({ ...plain, keepSeed: !byId("random-seed").checked });
}

function restore() {
  let stored = null;
  try {
    stored = JSON.parse(localStorage[STORED] ?? "null");
  } catch { /* of another version */ }
  const first = choices.current === choices.built_in ? FIRST : {};
  write(stored ?? first);
  if (!stored) byId("prompt").select();  // typing begins anew
  byId("random-seed").checked = !stored?.keepSeed;
  if (byId("seed").value === "") byId("seed").value = newSeed();
}

export function start() {
  on("choices", (found) => {
    const before = choices?.loaded;
    choices = found;
    offer();
    if (!before) restore();
    else if (before !== found.loaded && found.defaults) write(found.defaults, false);
    send("ready");
  });
  form.addEventListener("input", (event) => {
    if (/** @type {any} */ (event.target).type === "file") return;
    showOutputs();
    send("change");
  });
  on("change", store);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send("draw");
  });
  byId("dice").addEventListener("click", () => {
    byId("seed").value = newSeed();
    send("change");
  });
  on("begin", () => {
    for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  });
  on("error", ({ argument, message }) => {
    const name = argument ?? /^\w+/.exec(message ?? "")?.[0];  // errors begin with what they are of
    fields().find((field) => field.name === name)?.setAttribute("aria-invalid", "true");
  });
  showOutputs();
}
