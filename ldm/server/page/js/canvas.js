/**
 * The canvas: a sheet to start from (sketch, mask, edges to extend), and one for ControlNet.
 * A stroke that ends puts the sheet's picture among those that the drawing reads.
 */
import { cross, drawCross, moveCross } from "./cross.js";
import { on, send } from "./events.js";
import { layFrame, makeFrame } from "./extend.js";
import { bitmapOf, keep } from "./pictures.js";
import { choices } from "./settings.js";
import { Sheet } from "./strokes.js";
import { controls, tools } from "./tools.js";

const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const LAYERS = /** @type {const} */ (["base", "sketch", "mask"]);
const MASKED = "#e0218a";  // on the screen; the mask itself is white
const DENSE = 768;  // pixels of the longer side on the screen, at least

/** @type {{image: Sheet, control_image: Sheet}} */
const sheets = { image: new Sheet(128, 128), control_image: new Sheet(128, 128) };
const SMALL = 512 * 512;  // pixels of a sheet that live mode follows while a stroke is drawn
const BETWEEN = 120;  // ms
let stroke = null;
let delivered = 0;
let frame, canvases, surface;

const sheet = () => sheets[tools.sheet];

/** Show the sheet that is chosen. @param {"base"|"sketch"|"mask"} [only] */
export function repaint(only) {
  const now = sheet();
  const scale = Math.max(1, DENSE / Math.max(now.width, now.height));
  for (const layer of LAYERS) {
    if (only && layer !== only) continue;
    const canvas = canvases[layer];
    const [width, height] = [Math.round(now.width * scale), Math.round(now.height * scale)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    now.paint(canvas, layer);
  }
  if (only) return;
  Object.assign(surface, { width: canvases.base.width, height: canvases.base.height });
  const extends_ = tools.sheet === "image";
  layFrame(frame, now, extends_, extends_ && tools.tool === "extend");
  showCross();
}

/** Put the sheet's picture and mask among the pictures of the drawing. */
function deliver() {
  const now = sheet();
  delivered = performance.now();
  keep(tools.sheet, now.empty ? null : now.picture());
  if (tools.sheet === "image") keep("mask_image", now.mask());
}

/** @returns {[number, number]} the place of a pointer in pixels of the picture */
function placeOf(event) {
  const box = surface.getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * sheet().width,
    ((event.clientY - box.top) / box.height) * sheet().height,
  ];
}

/** @param {[number, number]} place */
function beginStroke(place) {
  if (tools.tool === "extend") return;
  const { width, height } = sheet();
  stroke = {
    layer: tools.layer, erases: tools.tool === "eraser",
    colour: tools.layer === "mask" ? MASKED : tools.colour,
    size: (tools.size / 100) * Math.min(width, height), points: [place],
  };
  sheet().add(stroke);
  repaintStroke();
}

/** An eraser's stroke is of all layers. */
const repaintStroke = () => {
  for (const layer of stroke.erases ? ["sketch", "mask"] : [stroke.layer]) repaint(layer);
};

/** @param {[number, number]} place */
function goOn(place) {
  const [x, y] = stroke.points.at(-1);
  if (Math.hypot(place[0] - x, place[1] - y) < 0.3) return;
  stroke.points.push(place);
  repaintStroke();
  const { width, height } = sheet();
  if (width * height <= SMALL && performance.now() - delivered > BETWEEN) deliver();
}

function endStroke() {
  if (!stroke) return;
  stroke = null;
  deliver();
}

function listenToPointer() {
  surface.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return;
    surface.setPointerCapture(event.pointerId);
    beginStroke(placeOf(event));
  });
  surface.addEventListener("pointermove", (event) => {
    if (!stroke || !event.isPrimary) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) goOn(placeOf(each));
  });
  for (const name of ["pointerup", "pointercancel"]) surface.addEventListener(name, endStroke);
}

/** @param {KeyboardEvent} event */
function pressKey(event) {
  if (moveCross(event, sheet())) {
    if (stroke) goOn([cross.x, cross.y]);
  } else if (event.key === " " && !event.repeat) {
    if (stroke) endStroke();
    else beginStroke([cross.x, cross.y]);
    byId("announce").textContent = stroke ? "The pen is down" : "The pen is up";
  } else return;
  event.preventDefault();
  showCross();
}

const showCross = () => drawCross(surface, sheet());

const commands = {
  undo: () => sheet().undo(),
  clear: () => sheet().clear(),
  empty: () => sheet().rebase(null),
};

/** @param {"undo"|"clear"|"empty"} name */
function command(name) {
  commands[name]();
  repaint();
  deliver();
}

/**
 * Take a picture as a sheet's base; the form takes its shape, at about the model's own size.
 * @param {"image"|"control_image"} name @param {Blob|string} source
 */
export async function takeBase(name, source) {
  const bitmap = await bitmapOf(source);
  sheets[name].rebase(bitmap);
  if (name === "image") shapeForm(bitmap);
  resize();
  tools.sheet = name;
  deliver();
  controls.refresh();
  repaint();
}

/** Set the form's size to the shape of a picture, with as many pixels as the model draws. */
function shapeForm({ width, height }) {
  const own = choices?.defaults ?? { width: 512, height: 512 };
  const scale = Math.sqrt((own.width * own.height) / (width * height));
  for (const [name, side] of Object.entries({ width, height })) {
    byId(name).value = Math.max(64, Math.round((side * Math.min(scale, 8)) / 8) * 8);
  }
}

/** Give the sheets the form's size; strokes keep their places in the picture. */
function resize() {
  const [width, height] = [Number(byId("width").value), Number(byId("height").value)];
  if (!(width >= 8 && height >= 8 && width <= 4096 && height <= 4096)) return;
  for (const [name, one] of Object.entries(sheets)) {
    if (one.width === width && one.height === height) continue;
    for (const each of one.strokes) {
      each.points = each.points.map(([x, y]) => [(x * width) / one.width, (y * height) / one.height]);
    }
    Object.assign(one, { width, height });
    if (one.empty) continue;
    keep(name, one.picture());
    if (name === "image") keep("mask_image", one.mask());
  }
  Object.assign(cross, { x: width / 2, y: height / 2 });
  repaint();
}

/** @param {"image"|"control_image"} name */
export function openSheet(name) {
  tools.sheet = name;
  controls.refresh();
  toggle(true);
  surface.focus({ preventScroll: true });
  byId("canvas").scrollIntoView({ block: "nearest" });
}

/** @param {boolean} open */
function toggle(open) {
  byId("canvas").hidden = byId("canvas-tools").hidden = !open;
  byId("toggle-canvas").setAttribute("aria-expanded", `${open}`);
  if (open) repaint();
}

function build() {
  const paper = document.createElement("div");
  paper.className = "paper";
  canvases = Object.fromEntries(LAYERS.map((layer) => [layer, document.createElement("canvas")]));
  for (const layer of LAYERS) {
    canvases[layer].className = `layer ${layer}`;
    canvases[layer].setAttribute("aria-hidden", "true");
    paper.append(canvases[layer]);
  }
  surface = document.createElement("canvas");
  surface.className = "layer surface";
  surface.tabIndex = 0;
  surface.setAttribute("role", "application");
  surface.setAttribute("aria-label", "Canvas");
  surface.setAttribute("aria-describedby", "canvas-hint");
  paper.append(surface);
  frame = makeFrame(paper, sheet);
  byId("easel").append(frame);
  controls.build(byId("canvas-tools"), command, repaint);
}

export function start() {
  build();
  listenToPointer();
  surface.addEventListener("keydown", pressKey);
  for (const name of ["focus", "blur"]) surface.addEventListener(name, showCross);
  surface.addEventListener("blur", endStroke);
  byId("stage").addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    command("undo");
  });
  on("start-from", ({ name, source }) => {
    takeBase(name, source).then(() => openSheet(name)).catch((error) => send("error", error));
  });
  on("kept", ({ name, url }) => {
    if (!url && sheets[name] && !sheets[name].empty) {
      sheets[name].rebase(null);
      if (name === "image") keep("mask_image", null);
      repaint();
    }
  });
  on("change", resize);
  on("margins", () => repaint());
  byId("toggle-canvas").addEventListener("click", () => toggle(byId("canvas").hidden));
}
