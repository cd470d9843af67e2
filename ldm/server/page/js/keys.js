/** Keys: Ctrl+Enter draws, Escape cancels, arrows move between tabs; and the colour scheme. */
import { on, send } from "./events.js";
import { busy } from "./queue.js";

const SCHEMES = { "": "automatic", light: "light", dark: "dark" };
const tabs = /** @type {HTMLElement[]} */ ([...document.querySelectorAll('[role="tab"]')]);

/** @param {HTMLElement} tab @param {boolean} [focus] */
export function openTab(tab, focus = false) {
  for (const each of tabs) {
    const open = each === tab;
    each.setAttribute("aria-selected", `${open}`);
    each.tabIndex = open ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !open;
  }
  if (focus) tab.focus();
  send("tab", { name: tab.id });
}

/** @param {KeyboardEvent} event */
function press(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send("draw");
  } else if (event.key === "Escape" && busy() && !document.querySelector("dialog[open]")) {
    send("cancel");
  }
}

function startTabs() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => openTab(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!move) return;
      openTab(tabs[(tabs.indexOf(tab) + move + tabs.length) % tabs.length], true);
    });
  }
  on("begin", ({ draft }) => { if (!draft) openTab(tabs[0]); });
}

function startScheme() {
  const button = document.getElementById("scheme");
  const names = Object.keys(SCHEMES);
  const use = (/** @type {string} */ name) => {
    localStorage["ldm.scheme"] = name;
    document.documentElement.className = name;
    button.textContent = `Colours: ${SCHEMES[name]}`;
  };
  button.addEventListener("click", () => {
    use(names[(names.indexOf(localStorage["ldm.scheme"]) + 1) % names.length]);
  });
  use(names.includes(localStorage["ldm.scheme"]) ? localStorage["ldm.scheme"] : "");
}

export function start() {
  document.addEventListener("keydown", press);
  startTabs();
  startScheme();
}
