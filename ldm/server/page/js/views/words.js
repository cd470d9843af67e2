/** The words of the prompt: hovering or focusing one shows where its attention was. */
import { el } from "./dom.js";

export class Words {
  /** @param {HTMLImageElement} overlay lies over the picture */
  constructor(overlay) {
    this.overlay = overlay;
    this.pinned = -1;
    this.list = el("ul", { class: "plain words", "aria-label": "Words of the prompt" });
    this.hint = el("p", { class: "hint" });
    this.element = el("div", { class: "words-of" }, this.list, this.hint);
  }

  /** @param {import("./records.js").PictureRecord} record */
  open(record) {
    this.record = record;
    this.pinned = -1;
    this.hide();
    this.hint.textContent = record.words.length
      ? "Point at a word to see which parts of the picture attended to it; click to keep it. "
        + "Shown is the mean over steps, layers and heads of cross-attention (Tang et al. 2022)."
      : "This picture has no words to show.";
    this.list.replaceChildren(...record.words.map((word, i) => {
      new Image().src = record.heat(i);  // so that it is there at once
      return el("li", {}, el("button", {
        type: "button", "aria-pressed": "false",
        onmouseenter: () => this.light(i), onmouseleave: () => this.rest(),
        onfocus: () => this.light(i), onblur: () => this.rest(),
        onclick: () => this.pin(i),
      }, word));
    }));
  }

  /** @param {number} i */
  light(i) {
    this.overlay.src = this.record.heat(i);
    this.overlay.alt = `Where the attention to “${this.record.words[i]}” was`;
    this.overlay.hidden = false;
    this.mark(i);
    this.overlay.closest("figure").classList.add("lit");
  }

  hide() {
    this.overlay.hidden = true;
    this.mark(-1);
    this.overlay.closest("figure")?.classList.remove("lit");
  }

  /** @param {number} i */
  mark(i) {
    [...this.list.querySelectorAll("button")].forEach((one, j) => one.classList.toggle("on", i === j));
  }

  rest() {
    if (this.pinned >= 0) this.light(this.pinned);
    else this.hide();
  }

  /** @param {number} i */
  pin(i) {
    this.pinned = this.pinned === i ? -1 : i;
    [...this.list.querySelectorAll("button")].forEach((one, j) => {
      one.setAttribute("aria-pressed", `${j === this.pinned}`);
    });
    if (this.pinned >= 0) this.light(i);
    else this.hide();
  }
}
