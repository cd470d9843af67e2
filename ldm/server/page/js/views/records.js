/** Records of how pictures came about: /api/records. */
import { ApiError, draw, getJson } from "../api.js";

/**
 * @typedef {{step: number, t: number, alpha: number, sigma: number, guided: boolean, latents: number[]}} Step
 * @typedef {object} About
 * @property {string} prediction_type @property {number} guidance_scale
 * @property {number[]} latents @property {number} factor @property {boolean} small
 * @property {Step[]} steps @property {{word: string}[]} words
 */

/** The record of one picture. */
export class PictureRecord {
  /** @param {string} id of the picture: the job's id, a dash, and a number */
  constructor(id) {
    const dash = id.lastIndexOf("-");
    this.path = `/api/records/${encodeURIComponent(id.slice(0, dash))}`;
    this.query = `?picture=${id.slice(dash + 1)}`;
    /** @type {About} */
    this.about = /** @type {any} */ (null);
  }

  async load() {
    this.about = await getJson(this.path + this.query);
    return this;
  }

  get steps() { return this.about.steps; }
  get words() { return this.about.words.map(({ word }) => word); }

  /** @param {number} step @param {string} view */
  view(step, view) { return `${this.path}/steps/${step}/${view}.png${this.query}`; }

  /** @param {number} index */
  heat(index) { return `${this.path}/words/${index}.png${this.query}`; }

  /** @param {number} step @param {number} row @param {number} column */
  numbers(step, row, column) {
    return getJson(`${this.path}/steps/${step}${this.query}&row=${row}&column=${column}`);
  }
}

/**
 * Return the record of a picture. The server keeps the newest only: of another one, the picture is
 * drawn once more, which gives the same picture.
 * @param {{picture: any, body: any}} detail
 * @param {{again: boolean, signal?: AbortSignal, onStatus?: (status: any) => void}} options
 *   again: whether it may be drawn once more
 */
export async function recordOf({ picture, body }, { again, ...options }) {
  try {
    return await new PictureRecord(picture.id).load();
  } catch (error) {
    if (!again || ![404, 410].includes(error.status)) throw error;
  }
  const { draft, num_images_per_prompt, ...one } = body;
  const last = await draw({ ...one, seed: picture.seed ?? body.seed, record: true }, options);
  if (!last.pictures.length) throw new ApiError("The drawing was cancelled.");
  return new PictureRecord(last.pictures[0].id).load();
}
