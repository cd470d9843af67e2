/** The canvas's tools: which sheet, which tool, its size and colour, undo. */

/** What is chosen. */
export const tools = {
  /** @type {"image"|"control_image"} */ sheet: "image",
  /** @type {"pen"|"mask"|"eraser"|"extend"} */ tool: "pen",
  size: 5,  // percent of the shorter side
  colour: "#1f1d1a",
  /** What a stroke is of; an eraser's is of all layers. @returns {"sketch"|"mask"|"all"} */
  get layer() {
    return this.tool === "eraser" ? "all" : this.tool === "mask" ? "mask" : "sketch";
  },
};

const SHEETS = { image: "Start picture", control_image: "Drawing to follow" };
const TOOLS = { pen: "Pen", mask: "Mask", eraser: "Eraser", extend: "Extend" };
const COMMANDS = { undo: "Undo", clear: "Clear strokes", empty: "Empty" };
const OF_START = ["mask", "extend"];  // tools that only the start picture has

/** @param {Record<string, string>} names @param {string} label @param {(name: string) => void} choose */
function buttons(names, label, choose) {
  const group = document.createElement("div");
  group.className = "group";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  for (const [name, text] of Object.entries(names)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text });
    button.dataset.name = name;
    button.addEventListener("click", () => choose(name));
    group.append(button);
  }
  return group;
}

/** @param {string} label @param {Record<string, string>} attributes */
function labelled(label, attributes) {
  const element = document.createElement("label");
  element.className = "check";
  const input = Object.assign(document.createElement("input"), attributes);
  element.append(label, input);
  return { element, input };
}

let sheets, kinds, colour;

export const controls = {
  /**
   * Build the toolbar.
   * @param {HTMLElement} place @param {(name: any) => void} command @param {() => void} changed
   */
  build(place, command, changed) {
    const choose = (/** @type {"sheet"|"tool"} */ what) => (/** @type {any} */ name) => {
      tools[what] = name;
      controls.refresh();
      changed();
    };
    sheets = buttons(SHEETS, "What the canvas is for", choose("sheet"));
    kinds = buttons(TOOLS, "Tool", choose("tool"));
    const size = labelled("Size", { type: "range", min: "1", max: "40", value: `${tools.size}` });
    size.input.addEventListener("input", () => { tools.size = Number(size.input.value); });
    colour = labelled("Colour", { type: "color", value: tools.colour });
    colour.input.addEventListener("input", () => { tools.colour = colour.input.value; });
    place.append(sheets, kinds, size.element, colour.element, buttons(COMMANDS, "Canvas", command));
    controls.refresh();
  },

  /** Show what is chosen. */
  refresh() {
    const start = tools.sheet === "image";
    if (!start && OF_START.includes(tools.tool)) tools.tool = "pen";
    for (const button of sheets.children) {
      button.setAttribute("aria-pressed", `${button.dataset.name === tools.sheet}`);
    }
    for (const button of kinds.children) {
      button.hidden = !start && OF_START.includes(button.dataset.name);
      button.setAttribute("aria-pressed", `${button.dataset.name === tools.tool}`);
    }
    colour.element.hidden = tools.tool !== "pen";
  },
};
