/** Keys: Ctrl+Enter draws, Escape cancels; the colour scheme; what a phone shows at first. */
import { send } from "./events.js";
import { busy } from "./queue.js";

const SCHEMES = { "": "automatic", light: "light", dark: "dark" };
/** @param {KeyboardEvent} event */
function press(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send("draw");
  } else if (event.key === "Escape" && busy() && !document.querySelector("dialog[open]")) {
    send("cancel");
  }
}

/** Where there is little room, the picture is below the prompt, and the settings are closed. */
function startMore() {
  const wide = matchMedia("(min-width: 60.01rem)");
  const fit = () => {
    /** @type {HTMLDetailsElement} */ (document.getElementById("more")).open = wide.matches;
  };
  wide.addEventListener("change", fit);
  fit();
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
  startMore();
  startScheme();
}
