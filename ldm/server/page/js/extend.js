/** Handles at the edges of the start picture, to go on drawing past them (outpainting). */
import { send } from "./events.js";
import { margins } from "./settings.js";

const SIDES = /** @type {const} */ (["left", "top", "right", "bottom"]);
const STEP = 8;  // pixels; the model draws multiples of it
const MOST = 1024;

const inputOf = (/** @type {string} */ side) => /** @type {HTMLInputElement} */ (
  document.getElementById(`extend-${side}`)
);

/** @param {string} side @param {number} pixels */
function setMargin(side, pixels) {
  const value = Math.min(MOST, Math.max(0, Math.round(pixels / STEP) * STEP));
  if (Number(inputOf(side).value) === value) return;
  inputOf(side).value = `${value}`;
  send("change");
  send("margins");
}

/** @param {string} side @param {HTMLElement} frame @param {() => number} shown pixels of the picture */
function makeHandle(side, frame, shown) {
  const handle = document.createElement("div");
  handle.className = `handle ${side}`;
  handle.tabIndex = 0;
  handle.setAttribute("role", "slider");
  handle.setAttribute("aria-label", `Extend ${side}`);
  handle.setAttribute("aria-valuemin", "0");
  handle.setAttribute("aria-valuemax", `${MOST}`);
  handle.setAttribute("aria-orientation", side === "left" || side === "right" ? "horizontal" : "vertical");
  const sign = side === "left" || side === "top" ? -1 : 1;
  handle.addEventListener("keydown", (event) => {
    const along = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!along) return;
    event.preventDefault();
    setMargin(side, Number(inputOf(side).value) + along * sign * STEP);
  });
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    const before = Number(inputOf(side).value);
    const scale = shown() / frame.getBoundingClientRect().width;
    const { clientX, clientY } = event;
    const move = (/** @type {PointerEvent} */ to) => {
      const along = side === "left" || side === "right" ? to.clientX - clientX : to.clientY - clientY;
      setMargin(side, before + sign * along * scale);
    };
    handle.addEventListener("pointermove", move);
    const end = () => handle.removeEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) handle.addEventListener(name, end, { once: true });
  });
  return handle;
}

/**
 * Make the frame of a sheet, which shows what is added on each side.
 * @param {HTMLElement} paper @param {() => {width: number, height: number}} sheet
 */
export function makeFrame(paper, sheet) {
  const frame = document.createElement("div");
  frame.className = "frame";
  const whole = () => {
    const [left, , right] = margins();
    return sheet().width + left + right;
  };
  frame.append(paper, ...SIDES.map((side) => makeHandle(side, frame, whole)));
  for (const side of SIDES) inputOf(side).addEventListener("input", () => send("margins"));
  return frame;
}

/**
 * Lay the sheet into its frame.
 * @param {HTMLElement} frame @param {{width: number, height: number}} sheet
 * @param {boolean} extends_ whether it has margins @param {boolean} handles whether they can be moved
 */
export function layFrame(frame, { width, height }, extends_, handles) {
  const [left, top, right, bottom] = extends_ ? margins() : [0, 0, 0, 0];
  const [w, h] = [width + left + right, height + top + bottom];
  frame.classList.toggle("extending", handles);
  const paper = /** @type {HTMLElement} */ (frame.firstElementChild);
  frame.style.setProperty("--ratio", `${w / h}`);
  Object.assign(paper.style, {
    left: `${(left / w) * 100}%`, top: `${(top / h) * 100}%`,
    width: `${(width / w) * 100}%`, height: `${(height / h) * 100}%`,
  });
  SIDES.forEach((side, i) => {
    const handle = frame.querySelector(`.handle.${side}`);
    const value = margins()[i];
    handle.hidden = !handles;
    handle.setAttribute("aria-valuenow", `${value}`);
    handle.setAttribute("aria-valuetext", `${value} pixels`);
    handle.dataset.pixels = value ? `+${value}` : "";
  });
}
