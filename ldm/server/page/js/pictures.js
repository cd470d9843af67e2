/** The pictures that a drawing begins with, or reads: data URLs by the argument's name. */
import { send } from "./events.js";

/** @typedef {"image"|"mask_image"|"control_image"|"ip_adapter_image"} Name */

/** @type {Map<Name, string>} */
const kept = new Map();

/** @param {Name} name */
export const picture = (name) => kept.get(name);

/** @param {Name} name @param {string|null} url null removes it */
export function keep(name, url) {
  if ((url ?? undefined) === kept.get(name)) return;
  if (url) kept.set(name, url);
  else kept.delete(name);
  send("kept", { name, url });
  send("change");
}

/**
 * Load a picture of a file, a blob or an address as a bitmap.
 * @param {Blob|string} source
 */
export async function bitmapOf(source) {
  const blob = typeof source === "string" ? await (await fetch(source)).blob() : source;
  try {
    return await createImageBitmap(blob);
  } catch {
    const name = blob instanceof File ? blob.name : "This";
    throw new Error(`${name} is no picture that the browser can read; use PNG, JPEG or WebP.`);
  }
}

/**
 * Read a blob as a data URL.
 * @param {Blob} blob @returns {Promise<string>}
 */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(/** @type {string} */ (reader.result));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}
