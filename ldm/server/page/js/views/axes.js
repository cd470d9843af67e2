/** What an X/Y plot can vary, and how its values are read from a text. */

/** Split at commas; a part in quotes may have commas. @param {string} text */
function parts(text) {
  return [...text.matchAll(/"([^"]*)"|([^,]+)/g)].map(([, quoted, plain]) => quoted ?? plain.trim())
    .filter((one) => one !== "");
}

/**
 * Read numbers: "1, 2", "1-5", "1-9 (+2)", or "0-1 [5]" for five between, as A1111's plots do.
 * @param {boolean} whole
 */
const numbers = (whole) => (/** @type {string} */ text) => parts(text).flatMap((part) => {
  const range = part.match(/^(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*(?:\(\+?([\d.]+)\)|\[(\d+)\])?$/);
  const found = range ? between(...range.slice(1).map((n) => (n ? Number(n) : undefined))) : [Number(part)];
  for (const one of found) {
    if (!Number.isFinite(one) || (whole && !Number.isInteger(one))) {
      throw new Error(`“${part}” is no ${whole ? "whole number" : "number"}; write such as 1, 2, 5 or 1-5.`);
    }
  }
  return found;
});

function between(low, high, by, count) {
  const step = count > 1 ? (high - low) / (count - 1) : by || 1;
  const most = count ?? Math.floor((high - low) / step + 1e-9) + 1;
  if (!(most >= 1) || most > 100) throw new Error(`From ${low} to ${high} are no 1 to 100 values.`);
  return Array.from({ length: most }, (_, i) => Number((low + i * step).toFixed(6)));
}

/** @param {Record<string, string>} known names and labels */
const names = (known) => (/** @type {string} */ text) => parts(text).map((part) => {
  const found = Object.entries(known).find((pair) => (
    pair.some((one) => one.toLowerCase() === part.toLowerCase())));
  if (!found) throw new Error(`“${part}” is not known; there are: ${Object.keys(known).join(", ")}.`);
  return found[0];
});

const set = (/** @type {string} */ name) => (body, value) => ({ ...body, [name]: value });

/** @param {any} choices of the server @returns {Record<string, any>} */
export function axesOf(choices) {
  const { samplers = {}, schedules = {}, loras = [], models = [] } = choices ?? {};
  const few = (known) => Object.keys(known).slice(0, 3).join(", ");
  const as = (list) => Object.fromEntries(list.map((one) => [one, one]));
  return {
    num_inference_steps: { label: "Steps", read: numbers(true), example: "5, 10, 20", set: set("num_inference_steps") },
    guidance_scale: { label: "Guidance", read: numbers(false), example: "1, 2, 4, 8", set: set("guidance_scale") },
    seed: { label: "Seed", read: numbers(true), example: "1-4", set: set("seed") },
    sampler: { label: "Sampler", read: names(samplers), example: few(samplers), set: set("sampler"), show: (v) => samplers[v] },
    schedule: { label: "Schedule", read: names(schedules), example: few(schedules), set: set("schedule"), show: (v) => schedules[v] },
    strength: {
      label: "Strength (with a start picture)", read: numbers(false), example: "0.3, 0.5, 0.7",
      set: (body, value) => {
        if (!body.image) throw new Error("Strength needs a picture to start from; choose one in the form.");
        return { ...body, strength: value };
      },
    },
    variation_strength: {
      label: "Variation strength", read: numbers(false), example: "0, 0.2, 0.4",
      set: (body, value) => ({ ...body, variation_seed: body.variation_seed ?? body.seed + 1, variation_strength: value }),
    },
    guidance_rescale: { label: "Guidance rescale", read: numbers(false), example: "0, 0.5, 1", set: set("guidance_rescale") },
    prompt: {
      label: "Prompt S/R", read: parts, example: "red, blue, green",
      hint: "The first is searched in the prompt, the others replace it.",
      set: (body, value, values) => {
        if (!body.prompt.includes(values[0])) {
          throw new Error(`“${values[0]}” is not in the prompt; Prompt S/R replaces its first value.`);
        }
        return { ...body, prompt: body.prompt.replaceAll(values[0], value) };
      },
    },
    negative_prompt: { label: "Negative prompt", read: parts, example: "blurry, \"dark, grey\"", set: set("negative_prompt") },
    ...(loras.length && {
      lora: { label: "LoRA", read: names(as(loras)), example: loras.slice(0, 2).join(", "), set: (body, value) => ({ ...body, loras: [{ name: value, scale: 1 }] }) },
    }),
    ...(models.length > 1 && {
      model: { label: "Model", read: names(as(models)), example: models.slice(0, 2).join(", "), set: set("model") },
    }),
  };
}
