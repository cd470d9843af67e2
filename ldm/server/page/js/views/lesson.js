/** What one step computed, as a lesson: x_t, the two predictions, guidance in numbers, x̂₀. */
import { send } from "../events.js";
import { el } from "./dom.js";

const SIGN = "\u2212";
const NAMES = { epsilon: "the noise ε", v_prediction: "v = α ε − σ x₀", sample: "x₀ itself", mean: "the mean μ̃" };
const SOURCES = {
  epsilon: "Ho et al. 2020, eq. 14", v_prediction: "Salimans & Ho 2022, appendix D",
  sample: "Ho et al. 2020, section 3.2", mean: "Ho et al. 2020, eq. 7",
};
const LETTERS = { epsilon: "ε", v_prediction: "v", sample: "x₀", mean: "μ" };
const TO_X0 = {
  epsilon: "x̂₀ = (x_t − σ ε̂) / α", v_prediction: "x̂₀ = α x_t − σ v̂", sample: "x̂₀ is the prediction itself",
  mean: "x̂₀ follows from μ̃ and x_t",
};

/** @param {number|null} value */
export function number(value, digits = 3) {
  if (value === null) return "∞";
  return value.toFixed(digits).replace("-", SIGN);
}

/** Text in which `x_t` has its index below: `formula("ε_u")`. */
export function formula(/** @type {string} */ text) {
  const whole = el("span", { class: "formula" });
  for (const part of text.split(/(_[\p{L}\p{N}]+)/u)) {
    whole.append(part.startsWith("_") ? el("sub", {}, part.slice(1)) : part);
  }
  return whole;
}

/** A paragraph: texts, and formulas between grave accents. */
export function words(/** @type {string} */ text) {
  return el("p", {}, ...inline(text));
}

/** Texts, and formulas between grave accents. @returns {(string|HTMLElement)[]} */
function inline(/** @type {string} */ text) {
  return text.split("`").map((part, i) => (i % 2 ? formula(part) : part));
}

export class Lesson {
  constructor() {
    this.row = this.column = 0;
    this.request = 0;
    this.body = el("ol", { class: "plain lesson" });
    this.element = el("details", { class: "lesson-of", ontoggle: () => this.draw() },
      el("summary", {}, "One step in detail: latents, two predictions, guidance"), this.body);
  }

  /** @param {import("./records.js").PictureRecord} record @param {import("./records.js").Step} step */
  show(record, step) {
    const [, height, width] = step.latents;
    if (record !== this.record) [this.row, this.column] = [height >> 1, width >> 1];
    this.row = Math.min(this.row, height - 1);  // a first pass has fewer
    this.column = Math.min(this.column, width - 1);
    this.record = record;
    this.step = step;
    this.draw();
  }

  figure(view, caption, { pick = false, sheet = false } = {}) {
    const image = el("img", { src: this.record.view(this.step.step, view), alt: caption.replaceAll("`", "") });
    const frame = el("div", { class: ["frame-of", sheet && "sheet", view.startsWith("x_") || sheet ? "raw" : ""].filter(Boolean).join(" ") }, image);
    if (pick) {
      const cross = el("span", { class: "cross" });
      frame.append(cross);
      frame.classList.add("pick");
      frame.addEventListener("click", (event) => {
        const box = frame.getBoundingClientRect();
        const [, height, width] = this.size;
        this.pick(Math.floor(((event.clientY - box.top) / box.height) * height),
          Math.floor(((event.clientX - box.left) / box.width) * width));
      });
    }
    return el("figure", {}, frame, el("figcaption", {}, ...inline(caption)));
  }

  get size() { return this.step.latents; }

  async pick(row, column) {
    const [, height, width] = this.size;
    this.row = Math.max(0, Math.min(height - 1, row || 0));
    this.column = Math.max(0, Math.min(width - 1, column || 0));
    await this.fill();
  }

  draw() {
    if (!this.element.open || !this.record) return;
    const { about } = this.record;
    const { step } = this;
    const [channels, height, width] = this.size;
    const kind = about.prediction_type;
    const letter = LETTERS[kind];
    const scale = about.guidance_scale;
    this.place = el("div", { class: "numbers" });
    const parts = [
      el("li", {},
        el("h3", {}, "What the step begins with"),
        words(`At t = ${number(step.t, 0)}, the latents are \`x_t = α x_0 + σ ε\` with α = ${number(step.alpha)} `
          + `and σ = ${number(step.sigma)}: so much of the picture, so much noise (Ho et al. 2020, eq. 4). `
          + `They are ${channels} channels of ${width} × ${height} numbers (Rombach et al. 2022, section 3.1).`),
        el("div", { class: "figures" },
          this.figure("x_rough", "`x_t` in rough colours", { pick: true }),
          this.figure("x_channels", `its ${channels} channels; black is ${SIGN}3, white 3`, { sheet: true }))),
      el("li", {},
        el("h3", {}, step.guided ? "Two predictions" : "One prediction"),
        words(step.guided
          ? `The network predicts ${NAMES[kind].startsWith("v") ? "`v = α ε − σ x_0`" : NAMES[kind]} `
            + `(${SOURCES[kind]}) twice from the same \`x_t\`: with the negative prompt, \`${letter}_u\`, and with your prompt, `
            + `\`${letter}_c\`. Each alone gives one of these estimates of the picture; they differ most at early steps.`
          : `The network predicts ${NAMES[kind]} (${SOURCES[kind]}) with your prompt. Nothing is guided at this step.`),
        el("div", { class: "figures" }, ...(step.guided
          ? [this.figure("x0_uncond", "without the prompt", { pick: true }),
            this.figure("x0_cond", "with the prompt", { pick: true }),
            this.figure("difference", "where they differ", { pick: true })]
          : [this.figure("x0_cond", "with the prompt", { pick: true })]))),
      step.guided ? el("li", {},
        el("h3", {}, "Guidance"),
        words(`Guidance goes past the prediction with the prompt, s = ${scale} times as far from the one without it: `
          + `\`${letter}̂ = ${letter}_u + s (${letter}_c − ${letter}_u)\` (Ho & Salimans 2022, eq. 6, where s is w + 1)`
          + `${kind === "v_prediction" ? ". For `ε̂` it is the same formula, as `ε = σ x_t + α v`." : "."} `),
        this.pointer(), this.place) : null,
      el("li", {},
        el("h3", {}, "The estimate of the picture"),
        words(`\`${TO_X0[kind].replaceAll("₀", "_0")}\` is what the step aims at (${SOURCES[kind]}). The sampler goes only a part `
          + "of the way: the next step begins with a little less noise, and predicts again."),
        el("div", { class: "figures" },
          this.figure("x0_guided", "`x̂_0`, decoded", { pick: true }),
          this.figure("x0_channels", "its channels", { sheet: true }))),
    ];
    this.body.replaceChildren(...parts.filter(Boolean));
    this.fill();
  }

  /** The fields that choose the pixel whose numbers are shown. */
  pointer() {
    const [, height, width] = this.size;
    const field = (name, most) => {
      const input = el("input", {
        type: "number", min: "0", max: `${most - 1}`, value: `${this[name]}`, id: `pixel-${name}`,
        onchange: () => this.pick(Number(this.inputs.row.value), Number(this.inputs.column.value)),
      });
      return input;
    };
    this.inputs = { row: field("row", height), column: field("column", width) };
    return el("p", { class: "row pointer" }, "The numbers of the latent pixel in",
      el("label", { for: "pixel-row" }, "row"), this.inputs.row,
      el("label", { for: "pixel-column" }, "column"), this.inputs.column,
      el("span", { class: "soft" }, "or click into a picture"));
  }

  async fill() {
    const { record, step, row, column } = this;
    const [, height, width] = this.size;
    for (const cross of this.body.querySelectorAll(".cross")) {
      Object.assign(cross.style, {
        left: `${(100 * column) / width}%`, top: `${(100 * row) / height}%`,
        width: `${100 / width}%`, height: `${100 / height}%`,
      });
    }
    if (!step.guided || !this.inputs) return;
    Object.assign(this.inputs.row, { value: `${row}` });
    Object.assign(this.inputs.column, { value: `${column}` });
    const mine = ++this.request;
    let found;
    try {
      found = await record.numbers(step.step, row, column);
    } catch (error) {
      send("error", error);
      return;
    }
    if (mine === this.request) this.place.replaceChildren(...this.table(found));
  }

  table(found) {
    const letter = LETTERS[this.record.about.prediction_type];
    const head = [`${letter}_u`, "", `${letter}_c`, "", `${letter}̂`];
    const rows = found.uncond.map((u, i) => el("tr", {},
      el("th", { scope: "row" }, `channel ${i + 1}`),
      el("td", {}, number(u)),
      el("td", { class: "soft" }, `+ ${found.scale} × (`),
      el("td", {}, number(found.cond[i])),
      el("td", { class: "soft" }, `− ${u < 0 ? `(${number(u)})` : number(u)} ) =`),
      el("td", { class: "result" }, number(found.guided[i]))));
    const { dtype } = this.record.about;
    const more = dtype === "float32" ? []
      : [el("p", { class: "hint" }, `The network computes in ${dtype} here, which has two to three digits.`)];
    if (found.rest > 1e-4) {
      more.push(el("p", { class: "hint" }, `More than this formula is at work, such as rescaling: it changes the result by up to ${number(found.rest)}.`));
    }
    return [
      el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": "Guidance in numbers" },
        el("table", {},
          el("thead", {}, el("tr", {}, el("td", {}), ...head.map((text) => (
            text ? el("th", { scope: "col" }, formula(text)) : el("td", {}))))),
          el("tbody", {}, ...rows))),
      ...more,
    ];
  }
}
