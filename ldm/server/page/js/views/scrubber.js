/** The denoising strip: a slider through the steps, thumbnails, and a button that plays them. */
import { send } from "../events.js";
import { button, calm, el } from "./dom.js";

const FRAME = 110;  // ms a step
const SETTLED = 250;  // ms at a step, until a large picture is decoded

export class Scrubber {
  /** @param {(step: import("./records.js").Step, url: string) => void} show */
  constructor(show) {
    this.show = show;
    this.timer = this.settling = 0;
    this.range = el("input", {
      type: "range", min: "0", value: "0", step: "1", id: "step-range",
      oninput: () => { this.stop(); this.go(Number(this.range.value)); },
    });
    this.play = button("Play", () => this.toggle(), { class: "play" });
    this.label = el("output", { for: "step-range", class: "step-label" });
    this.thumbs = el("ol", { class: "plain thumbs", "aria-label": "Steps" });
    this.element = el("div", { class: "scrubber" },
      el("div", { class: "scrub-row" }, this.play,
        el("label", { for: "step-range", class: "hidden" }, "Step of the drawing"),
        this.range, this.label),
      this.thumbs);
  }

  /** @param {import("./records.js").PictureRecord} record @param {string} last address of the picture */
  open(record, last) {
    this.stop();
    this.record = record;
    this.last = last;
    this.range.max = `${record.steps.length - 1}`;
    this.play.textContent = calm() ? "Next step" : "Play";
    this.thumbs.replaceChildren(...record.steps.map((step, i) => el("li", {},
      el("button", {
        type: "button", tabIndex: -1, "aria-label": `Step ${step.step}`,
        onclick: () => { this.stop(); this.go(i); },
      }, el("img", { src: this.small(i), alt: "" })))));
    this.go(record.steps.length - 1);
  }

  /** The address of a step in its cheapest form. */
  small(i) {
    return this.record.view(this.record.steps[i].step, this.record.about.small ? "x0" : "x0_rough");
  }

  /** @param {number} i */
  go(i) {
    const { record } = this;
    const step = record.steps[i];
    const whole = record.steps.at(-1).step;
    clearTimeout(this.settling);
    this.range.value = `${i}`;
    this.range.setAttribute("aria-valuetext", `step ${step.step} of ${whole}`);
    this.label.value = `${step.step} / ${whole}`;
    [...this.thumbs.children].forEach((item, j) => {
      const thumb = item.firstElementChild;
      if (i === j) {
        thumb.setAttribute("aria-current", "step");
        this.thumbs.scrollTo({ left: item.offsetLeft - this.thumbs.clientWidth / 2 });
      } else thumb.removeAttribute("aria-current");
    });
    const end = i === record.steps.length - 1;
    this.show(step, end ? this.last : this.small(i));
    if (end || record.about.small) send("step", { record, step });
    else {
      this.settling = setTimeout(() => {
        this.show(step, record.view(step.step, "x0"));
        send("step", { record, step });
      }, SETTLED);
    }
  }

  toggle() {
    if (this.timer) { this.stop(); return; }
    const { length } = this.record.steps;
    const next = () => {
      const i = Number(this.range.value) + 1;
      if (i >= length) this.stop();
      else this.go(i);
    };
    if (Number(this.range.value) >= length - 1) this.go(0);
    else if (calm()) next();
    if (calm()) return;  // a press is a step
    this.play.textContent = "Pause";
    this.timer = setInterval(next, FRAME);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    if (!calm()) this.play.textContent = "Play";
  }
}
