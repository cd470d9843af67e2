/** Examples below the prompt, and LoRAs that are added to it. */
import { on, send } from "./events.js";
import { choices, fill } from "./settings.js";

const EXAMPLES = [
  "a red car", "a purple cat on a yellow background", "three blue birds", "a pizza, 3d",
  "a green tree and a house", "a small rocket on the left",
];
const prompt = /** @type {HTMLTextAreaElement} */ (document.getElementById("prompt"));
const list = document.getElementById("loras");

function showExamples() {
  document.getElementById("examples").replaceChildren(...EXAMPLES.map((text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      prompt.value = text;
      send("change");
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

/** @param {string} name @param {number} scale */
function addLora(name, scale = 1) {
  if (!name || [...list.querySelectorAll("input")].some((one) => one.dataset.lora === name)) return;
  const item = document.createElement("li");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const remove = document.createElement("button");
  Object.assign(input, { type: "number", step: "0.1", min: "-2", max: "2", value: `${scale}`, id: `lora-${name}` });
  input.dataset.lora = name;
  Object.assign(label, { textContent: name, htmlFor: input.id });
  Object.assign(remove, { type: "button", textContent: "Remove", ariaLabel: `Remove ${name}` });
  remove.addEventListener("click", () => {
    item.remove();
    document.getElementById("lora").focus();
    send("change");
  });
  item.append(label, input, remove);
  list.append(item);
}

export function start() {
  showExamples();
  on("ready", () => {
    document.getElementById("lora-options").hidden = !choices.loras.length;
    document.getElementById("examples").hidden = choices.current !== choices.built_in;
    fill(document.getElementById("lora"), choices.loras);
  });
  on("loras", (loras) => {
    list.replaceChildren();
    for (const { name, scale } of loras) addLora(name, scale);
  });
  document.getElementById("add-lora").addEventListener("click", () => {
    addLora(/** @type {any} */ (document.getElementById("lora")).value);
    send("change");
  });
}
