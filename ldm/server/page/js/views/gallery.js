/** The gallery: the pictures of this session, each with its settings and what to do with it. */
import { on } from "../events.js";
import { button, el, fileName } from "./dom.js";
import * as large from "./large.js";

/** @typedef {{picture: any, body: any, partial?: boolean}} Entry */

const STORED = "ldm.gallery";
const MOST = 200;
const LONG = 50_000;  // characters: a longer value is a picture, for which the session has no room

const place = document.getElementById("gallery");
/** The newest first. @type {Entry[]} */
let entries = [];
const list = el("ul", { class: "plain tiles" });
const count = el("span", { class: "soft" });

/** Return an entry as the session stores it: without the pictures that it was drawn from. */
function stored(entry) {
  const body = Object.fromEntries(
    Object.entries(entry.body).filter(([, value]) => JSON.stringify(value ?? "").length < LONG),
  );
  const partial = entry.partial || Object.keys(body).length < Object.keys(entry.body).length;
  return partial ? { ...entry, body, partial } : { ...entry, body };
}

function store() {
  try {
    sessionStorage[STORED] = JSON.stringify(entries.map(stored));
  } catch { /* no room: the pictures stay until the page is left */ }
}

function restore() {
  try {
    entries = JSON.parse(sessionStorage[STORED] ?? "[]");
  } catch {
    entries = [];
  }
}

/** @param {Entry} entry */
export function remove(entry) {
  const i = entries.indexOf(entry);
  if (i < 0) return;
  entries.splice(i, 1);
  show();
  store();
  /** @type {any} */ (tiles()[Math.min(i, entries.length - 1)] ?? place).focus();
}

const tiles = () => [...list.querySelectorAll(".tile")];

/** @param {Entry} entry */
function tile(entry) {
  const { picture, body } = entry;
  const words = body.prompt || "a picture without a prompt";
  const image = el("img", {
    src: picture.url, alt: `${words}, seed ${picture.seed}`, loading: "lazy",
    onerror: () => { forget(entry); },
  });
  const act = (/** @type {string} */ action) => () => large.act(action, entry);
  return el("li", {},
    el("button", {
      type: "button", class: "tile", tabIndex: -1, title: words,
      onclick: () => large.open(entry, entries),
    }, image),
    el("p", { class: "caption" }, words),
    el("div", { class: "tile-actions" },
      button("Again", act("same"), {
        title: "Draw it again: the same seed draws the same picture",
        "aria-label": `Again: ${words}`, disabled: Boolean(entry.partial),
      }),
      button("Vary", act("vary"), {
        title: "Draw a picture that differs a little",
        "aria-label": `Vary: ${words}`, disabled: Boolean(entry.partial),
      }),
      button("Start", act("start"), {
        title: "Start from this picture", "aria-label": `Use as start: ${words}`,
      }),
      button("×", () => remove(entry), { title: "Remove", "aria-label": `Remove: ${words}` })),
  );
}

/** Leave out a picture that the server has dropped. @param {Entry} entry */
function forget(entry) {
  entries = entries.filter((one) => one !== entry);
  show();
  store();
}

function show() {
  place.hidden = !entries.length;
  count.textContent = `${entries.length}`;
  list.replaceChildren(...entries.map(tile));
  const [first] = tiles();
  if (first) first.tabIndex = 0;
}

/** Arrows move between pictures, Delete removes one. @param {KeyboardEvent} event */
function press(event) {
  const all = tiles();
  const i = all.indexOf(/** @type {any} */ (document.activeElement));
  if (i < 0) return;
  const columns = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
  const moves = {
    ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + columns, ArrowUp: i - columns,
    Home: 0, End: all.length - 1,
  };
  if (event.key === "Delete") remove(entries[i]);
  const next = all[moves[event.key]];
  if (!(event.key in moves)) return;
  event.preventDefault();
  if (!next) return;
  all[i].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function save() {
  for (const entry of entries) {
    el("a", { href: entry.picture.url, download: fileName(entry) }).click();
  }
}

const removeAll = button("Remove all", () => {
  if (!removeAll.dataset.sure) {  // asks, on the button itself
    removeAll.dataset.sure = "yes";
    removeAll.textContent = `Really remove ${entries.length}?`;
    return;
  }
  entries = [];
  show();
  store();
  calmDown();
}, { class: "quiet", onblur: () => calmDown() });

function calmDown() {
  delete removeAll.dataset.sure;
  removeAll.textContent = "Remove all";
}

export function start() {
  restore();
  place.tabIndex = -1;
  place.append(
    el("div", { class: "head" },
      el("h2", {}, "Gallery ", count),
      el("p", { class: "soft hint" }, "Arrows move, Enter opens, Delete removes"),
      button("Download all", save, { class: "quiet" }),
      removeAll),
    list);
  list.addEventListener("keydown", press);
  show();
  on("picture", ({ picture, body, index = 0 }) => {
    // Of several variations, the second seed counts up, not the first.
    const varied = body.variation_seed === undefined ? {} : { variation_seed: body.variation_seed + index };
    entries = [{ picture, body: { ...body, ...varied } }, ...entries].slice(0, MOST);
    show();
    store();
  });
  on("remove", ({ entry }) => remove(entry));
}
