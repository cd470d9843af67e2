/** How the selected picture was drawn: its words, its steps, and one step in detail. */
import { on, send } from "../events.js";
import { button, el } from "./dom.js";
import { Lesson, number, words as paragraph } from "./lesson.js";
import { recordOf } from "./records.js";
import { Scrubber } from "./scrubber.js";
import { Words } from "./words.js";

const place = document.getElementById("views");
const picture = el("img", { alt: "", class: "shown" });
const overlay = el("img", { alt: "", class: "heat", hidden: true });
const title = el("p", { class: "soft of" });
const level = el("div", { class: "level-of" });
const report = el("p", { class: "soft hint", role: "status" });
const content = el("div", { class: "view-content", hidden: true });
const words = new Words(overlay);
const lesson = new Lesson();
const scrubber = new Scrubber((step, url) => {
  picture.src = url;
  picture.alt = `What the picture looked like at step ${step.step}`;
  level.replaceChildren(...levelOf(step));
});

/** How much of x_t is picture and how much noise, as words and as a bar. */
function levelOf({ step, t, alpha, sigma }) {
  const part = (name, share) => el("span", { class: name, style: `flex-grow:${share}` });
  return [
    paragraph(`Step ${step} began at t = ${number(t, 0)}. Of \`x_t\` there, ${Math.round(100 * alpha ** 2)}\u00a0% was picture `
      + `and ${Math.round(100 * sigma ** 2)}\u00a0% noise:`),
    el("div", { class: "level" }, part("signal", alpha ** 2), part("noise", sigma ** 2)),
    el("p", { class: "level-ends hint" },
      el("span", {}, `picture: α² = ${number(alpha ** 2, 2)}`), el("span", {}, `noise: σ² = ${number(sigma ** 2, 2)}`)),
  ];
}

let controller = new AbortController();

/** @param {{picture: any, body: any}} detail @param {boolean} [again] draw it anew if need be */
async function select(detail, again = true) {
  controller.abort();
  const mine = (controller = new AbortController());
  if (again) {
    place.hidden = false;
    report.textContent = "Looking for its steps …";
    place.scrollIntoView({ block: "start" });
  }
  try {
    const record = await recordOf(detail, {
      again,
      signal: mine.signal,
      onStatus: ({ step, steps }) => {
        report.textContent = `It is drawn once more, to see how: step ${step} of ${steps || "…"}`;
      },
    });
    if (mine.signal.aborted) return;
    show(record, detail);
    if (again) /** @type {any} */ (place.querySelector("h2")).focus({ preventScroll: true });
  } catch (error) {
    if (mine.signal.aborted) return;
    report.textContent = "";
    if (again) send("error", error);
    else place.hidden = true;
  }
}

/** @param {import("./records.js").PictureRecord} record */
function show(record, detail) {
  report.textContent = "";
  place.hidden = content.hidden = false;
  title.textContent = `${detail.body.prompt || "A picture without a prompt"} · seed ${detail.picture.seed}`;
  words.open(record);
  scrubber.open(record, detail.picture.url);
}

export function start() {
  place.hidden = true;
  content.append(
    el("div", { class: "view-top" },
      el("figure", { class: "looked-at" }, picture, overlay,
        el("figcaption", {},
          el("span", {}, "less"), el("span", { class: "ramp" }), el("span", {}, "more attention"))),
      el("div", { class: "view-side" },
        el("h3", {}, "Where each word looked"), words.element,
        el("h3", {}, "How it formed"),
        paragraph("It began as noise. At every step the network estimates the finished picture, `x̂_0`: this is "
          + "what you see. Then a little of the noise is taken away (Ho et al. 2020, algorithm 2)."),
        level)),
    scrubber.element,
    lesson.element);
  place.classList.add("card");
  place.append(
    el("div", { class: "head" }, el("h2", { tabIndex: -1 }, "How it was drawn"), title,
      button("Hide", () => { place.hidden = true; }, { class: "quiet" })),
    report, content);
  on("step", ({ record, step }) => lesson.show(record, step));
  on("select", (detail) => select(detail));
  // Of a drawing of several pictures, the first is on the stage.
  on("picture", (detail) => { if (!detail.index) select(detail, false); });
  on("begin", ({ draft }) => { if (!draft) controller.abort(); });
}
