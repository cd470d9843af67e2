/** X/Y plots: a table of pictures that differ in two settings, filled as they come. */
import { draw } from "../api.js";
import { on, send } from "../events.js";
import { choices, newSeed, read } from "../settings.js";
import { axesOf } from "./axes.js";
import { button, download, el } from "./dom.js";
import * as large from "./large.js";
import { sheetOf } from "./sheet.js";

const MOST = 100;  // pictures
const AT_ONCE = 3;  // requests: the server draws alike ones together

/** @type {Record<string, any>} */
let axes = {};
let controller = new AbortController();
let plot = null;  // the one that is shown: {title, columns, rows, urls}

const status = el("p", { class: "soft hint", role: "status" });
const table = el("table", { class: "plot" });
const fields = { x: field("x", "X: columns"), y: field("y", "Y: rows") };
const fill = button("Fill the plot", () => run(), { class: "primary" });
const cancel = button("Cancel", () => controller.abort(), { disabled: true });
const save = button("Download as one PNG", () => exportSheet(), { disabled: true });

function field(name, label) {
  const select = el("select", { id: `plot-${name}`, onchange: () => suggest(name) });
  const values = el("input", { type: "text", id: `plot-${name}-values`, spellcheck: false });
  const hint = el("p", { class: "hint", id: `plot-${name}-hint` });
  values.setAttribute("aria-describedby", hint.id);
  return {
    select, values, hint,
    element: el("fieldset", { class: "axis" },
      el("legend", {}, label),
      el("label", { for: select.id, class: "hidden" }, `${label}: the setting`), select,
      el("label", { for: values.id, class: "hidden" }, `${label}: its values`), values, hint),
  };
}

function suggest(name) {
  const { select, values, hint } = fields[name];
  const axis = axes[select.value];
  values.disabled = !axis;
  values.value = axis?.example ?? "";
  hint.textContent = axis?.hint ?? (axis ? "Values with commas between; ranges such as 1-5 of numbers." : "One row.");
}

function offer() {
  axes = axesOf(choices);
  const options = Object.entries(axes).map(([name, { label }]) => [label, name]);
  for (const [name, first] of [["x", "num_inference_steps"], ["y", "guidance_scale"]]) {
    const { select } = fields[name];
    select.replaceChildren(...options.map(([label, value]) => new Option(label, value)));
    if (name === "y") select.append(new Option("nothing", ""));
    select.value = first;
    suggest(name);
  }
}

/** Read an axis. @returns {{label: string, values: any[], set: Function, show: Function}} */
function axisOf(name) {
  const { select, values } = fields[name];
  const axis = axes[select.value];
  if (!axis) return { label: "", values: [""], set: (body) => body, show: () => "" };
  let found;
  try {
    found = axis.read(values.value);
  } catch (error) {
    values.focus();
    throw new Error(`${axis.label}: ${error.message}`);
  }
  if (!found.length) {
    values.focus();
    throw new Error(`${axis.label} has no values; write such as ${axis.example}.`);
  }
  return { ...axis, values: found, show: axis.show ?? ((value) => `${value}`) };
}

/** @param {any} x @param {any} y @returns the cells' bodies, row by row */
function bodiesOf(x, y) {
  if (x.label === y.label) throw new Error(`X and Y are both ${x.label}; choose two settings.`);
  const count = x.values.length * y.values.length;
  if (count > MOST) throw new Error(`${x.values.length} × ${y.values.length} = ${count} pictures; at most ${MOST} are drawn.`);
  const { num_images_per_prompt, ...body } = read();
  body.seed ??= newSeed();
  return y.values.map((row) => x.values.map((column) => (
    y.set(x.set(body, column, x.values), row, y.values))));
}

async function run() {
  let x, y, bodies;
  try {
    [x, y] = [axisOf("x"), axisOf("y")];
    bodies = bodiesOf(x, y);
  } catch (error) {
    send("error", error);
    return;
  }
  const label = (axis, value) => (axis.label ? `${axis.label} ${axis.show(value)}` : "");
  plot = {
    title: bodies[0][0].prompt ?? "",
    columns: x.values.map((value) => label(x, value)),
    rows: y.values.map((value) => label(y, value)),
    urls: bodies.map((row) => row.map(() => null)),
    entries: [],
  };
  const cells = lay(plot);
  await fillAll(bodies, cells);
}

/** Show the empty table. @returns {HTMLElement[][]} its cells */
function lay({ columns, rows, title }) {
  const cells = rows.map(() => columns.map(() => el("td", {}, el("span", { class: "blank" }))));
  table.replaceChildren(
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, el("td", {}), ...columns.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((text, j) => (
      el("tr", {}, el("th", { scope: "row" }, text), ...cells[j])))));
  return cells;
}

/** @param {any[][]} bodies @param {HTMLElement[][]} cells */
async function fillAll(bodies, cells) {
  const mine = (controller = new AbortController());
  const { signal } = mine;
  const all = bodies.flatMap((row, j) => row.map((body, i) => ({ body, i, j, cell: cells[j][i] })));
  const left = [...all];
  let done = 0;
  [fill.disabled, cancel.disabled, save.disabled] = [true, false, true];
  const report = () => { status.textContent = `${done} of ${all.length} pictures`; };
  report();
  const work = async () => {
    while (left.length && !signal.aborted) {
      const one = left.shift();
      await fillCell(one, signal);
      done += 1;
      if (!signal.aborted) report();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  [fill.disabled, cancel.disabled] = [false, true];
  save.disabled = !plot.entries.length;
  status.textContent = signal.aborted
    ? `Cancelled: ${plot.entries.length} of ${all.length} pictures are drawn.`
    : `${plot.entries.length} of ${all.length} pictures are drawn.`;
}

async function fillCell({ body, i, j, cell }, signal) {
  const label = [plot.columns[i], plot.rows[j]].filter(Boolean).join(", ");
  const image = el("img", { alt: `Preview: ${label}` });
  try {
    const last = await draw({ ...body, record: true }, {
      signal,
      onStatus: ({ preview }) => {
        if (!preview) return;
        image.src = preview;
        if (!image.isConnected) cell.replaceChildren(image);
      },
    });
    const [picture] = last.pictures;
    if (!picture) throw new Error("cancelled");
    const entry = { picture, body };
    plot.urls[j][i] = picture.url;
    plot.entries.push(entry);
    Object.assign(image, { src: picture.url, alt: label });
    cell.replaceChildren(el("button", {
      type: "button", class: "tile", title: label, onclick: () => large.open(entry, plot.entries),
    }, image));
  } catch (error) {
    if (signal.aborted) return;
    cell.replaceChildren(el("p", { class: "failed" }, error.message));
  }
}

async function exportSheet() {
  try {
    const url = URL.createObjectURL(await sheetOf(plot));
    download(url, "plot.png");
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } catch (error) {
    send("error", error);
  }
}

export function start() {
  document.querySelector("main").append(
    el("section", { id: "plots", class: "card plots", "aria-label": "X/Y plot" },
      el("details", {},
        el("summary", {}, "X/Y plot ", el("span", { class: "soft" }, "the form's picture, with two settings varied")),
        el("div", { class: "pair" }, fields.x.element, fields.y.element),
        el("div", { class: "row" }, fill, cancel, save),
        status,
        el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": "The plot" }, table))));
  on("ready", offer);
  on("cancel", () => controller.abort());
}
