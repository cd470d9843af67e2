/** Small helpers for elements. */

/**
 * Make an element: `el("button", { class: "quiet", onclick: act }, "Act")`. Names with a dash, and
 * "class", "for" and "role", are attributes; all others are properties.
 * @param {string} tag @param {Record<string, any>} [props] @param {...(Node|string)} children
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-") || ["class", "for", "role"].includes(name)) {
      element.setAttribute(name, value);
    } else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** @param {string} text @param {() => void} act @param {Record<string, any>} [props] */
export const button = (text, act, props = {}) =>
  el("button", { type: "button", onclick: act, ...props }, text);

/** Download what an address has. @param {string} url @param {string} name */
export function download(url, name) {
  el("a", { href: url, download: name }).click();
}

/** Return a file's name for a picture. */
export function fileName({ picture, body }) {
  const words = (body.prompt || "picture").slice(0, 60).replace(/[^\p{L}\p{N}]+/gu, "-");
  return `${words}-${picture.seed}.png`;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
