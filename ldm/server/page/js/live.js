/**
 * Live mode: a draft of few steps after each change. One that is under way is stopped, but not
 * before something of it was seen if nothing was for a while: else fast typing would show nothing.
 */
import { on } from "./events.js";
import { busy, drawDraft, running } from "./queue.js";
import { choices, read } from "./settings.js";

const PAUSE = 25;  // ms after a change, in which others may follow
const PATIENCE = 300;  // ms without a new preview
/** Five steps of DPM++ 2M on its own levels look like twenty; on Karras's they do not. */
const FEW_STEPS = { num_inference_steps: 5, sampler: "dpmpp_2m", schedule: "normal" };
/** What the model's own LoRA for few steps brings along. */
const OWN = { few_steps: true, sampler: undefined, schedule: undefined, guidance_scale: undefined };
/** As the authors of LCM-LoRA advise. */
const LCM = { num_inference_steps: 4, sampler: "lcm", schedule: undefined, guidance_scale: 1.5 };

/** Where the choice is kept: other models may take minutes for what the built-in one draws at once. */
const stored = () => `ldm.live.${choices.current}`;
const toggle = /** @type {HTMLInputElement} */ (document.getElementById("live"));
const hint = document.getElementById("live-hint");
let timer = 0;
let seen = 0;  // when a preview was last shown
let last = "";  // what was drawn last
let brokenLora = "";  // an LCM-LoRA that does not fit the model

/** The LoRA that makes this model one of few steps, if the server lists one. */
function fastLora() {
  return choices?.loras.find((name) => /lcm/i.test(name) && name !== brokenLora);
}

/** Return the body of a draft. @param {import("./events.js").Body} body */
export function draftOf(body) {
  const { hires, hires_scale, hires_strength, num_images_per_prompt, ...rest } = body;
  const draft = { ...rest, draft: true };
  if (choices?.defaults?.few_steps) return { ...draft, num_inference_steps: undefined };
  if (choices?.own_few_steps) return { ...draft, ...OWN, num_inference_steps: choices.own_few_steps };
  const lora = fastLora();
  if (!lora) return { ...draft, ...FEW_STEPS };
  const others = (body.loras ?? []).filter(({ name }) => name !== lora);
  return { ...draft, ...LCM, loras: [...others, { name: lora, scale: 1 }] };
}

function redraw() {
  clearTimeout(timer);
  if (!toggle.checked || busy()) return;
  const body = draftOf(read());
  const now = JSON.stringify(body);
  if (now === last) return;
  const before = running();
  if (before && !before.shown && performance.now() - seen > PATIENCE) {
    timer = setTimeout(redraw, 10);  // its first preview comes soon
    return;
  }
  last = now;
  drawDraft(body);
}

function change() {
  if (!toggle.checked) return;
  clearTimeout(timer);
  timer = setTimeout(redraw, PAUSE);
}

function describe() {
  const how = choices?.defaults?.few_steps ? "the model's few steps"
    : choices?.own_few_steps ? `${choices.own_few_steps} steps with the model's own LoRA`
    : fastLora() ? `4 steps with the LoRA ${fastLora()}` : `${FEW_STEPS.num_inference_steps} steps`;
  const broken = brokenLora ? ` (The LoRA ${brokenLora} does not fit this model.)` : "";
  hint.textContent = toggle.checked
    ? `Live draws a draft of ${how} while you type.${broken} Draw makes the picture.`
    : "Live is off: Draw makes the picture.";
}

export function start() {
  on("ready", () => {
    const choice = localStorage[stored()];
    toggle.checked = choice ? choice === "on" : choices.current === choices.built_in;
    brokenLora = "";
    describe();
    change();
  });
  toggle.addEventListener("change", () => {
    localStorage[stored()] = toggle.checked ? "on" : "off";
    last = "";
    describe();
    change();
  });
  on("change", change);
  on("status", ({ draft, status }) => {
    if (draft && status.preview) seen = performance.now();
  });
  on("draft", () => { seen = performance.now(); });
  on("end", ({ draft, state, body, error }) => {
    const wrong = state === "failed" && error?.status !== 400;  // else a setting is wrong
    if (!draft || !wrong || !fastLora() || !body.loras?.some(({ name }) => name === fastLora())) return;
    brokenLora = fastLora();
    describe();
    change();
  });
}
