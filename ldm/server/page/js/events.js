/**
 * What the parts of the page send each other. A part listens with
 * `bus.addEventListener(name, ({detail}) => …)` and sends with `send(name, detail)`.
 *
 * "picture"  {picture, body}         a picture is finished, and belongs into the gallery
 * "draft"    {picture, body}         one of live mode, which the next key replaces
 * "use"      {action, picture, body} what to do with a picture:
 *                                    "again"    draw it again from another seed
 *                                    "vary"     draw one that differs a little
 *                                    "start"    start from it (image to image)
 *                                    "settings" put its settings into the form
 * "select"   {picture, body}         show the views of this picture
 * "draw"     {body?}                 draw the form's settings, or those given
 * "cancel"   {}                      stop what is being drawn
 * "change"   {}                      a setting has changed
 * "error"    {message, argument?}    words for the user
 * "begin", "status", "end"           of each run, see queue.js; {body, draft, status or state}
 * "choices", "ready"                 what the server offers, and that the form has it
 * "kept"     {name, url}             a picture that the drawing reads was put there, or removed
 * "start-from" {name, source}        put a picture on a sheet of the canvas
 *
 * @typedef {{id: string, url: string, seed: number, width: number, height: number}} Picture
 * @typedef {Record<string, any>} Body the JSON of POST /api/draw: arguments of `LargeRequest`
 */
export const bus = new EventTarget();

/** @param {string} name @param {object} [detail] */
export function send(name, detail = {}) {
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}

/** @param {string} name @param {(detail: any) => void} listener */
export function on(name, listener) {
  bus.addEventListener(name, (event) => listener(/** @type {CustomEvent} */ (event).detail));
}
