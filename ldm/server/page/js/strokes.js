/**
 * A sheet of paper: a picture below, strokes of a sketch, and strokes of a mask above it.
 * Points are in pixels of the picture that is drawn; they are shown at any scale.
 */

/**
 * @typedef {object} Stroke
 * @property {"sketch"|"mask"|"all"} layer of an eraser it is "all"
 * @property {boolean} erases
 * @property {string} colour @property {number} size diameter in pixels
 * @property {[number, number][]} points
 */

export class Sheet {
  /** @param {number} width @param {number} height */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    /** @type {ImageBitmap|null} */
    this.base = null;
    /** @type {Stroke[]} */
    this.strokes = [];
    /** What undo brings back. @type {Stroke[][]} */
    this.past = [];
  }

  /** @param {Stroke} stroke */
  add(stroke) {
    this.past.push([...this.strokes]);
    this.strokes.push(stroke);
  }

  /** Remove the strokes of both layers; undo brings them back. */
  clear() {
    if (!this.strokes.length) return;
    this.past.push([...this.strokes]);
    this.strokes = [];
  }

  undo() {
    this.strokes = this.past.pop() ?? this.strokes;
  }

  /** Take another picture as the base, without strokes. @param {ImageBitmap|null} base */
  rebase(base) {
    this.base = base;
    this.strokes = [];
    this.past = [];
  }

  get empty() {
    return !this.base && !this.strokes.length;
  }

  /**
   * Draw a layer into a canvas, which is cleared.
   * @param {HTMLCanvasElement|OffscreenCanvas} canvas @param {"base"|"sketch"|"mask"} layer
   */
  paint(canvas, layer) {
    const context = canvas.getContext("2d");
    const scale = canvas.width / this.width;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    if (layer === "base") {
      context.fillStyle = "#fff";
      context.fillRect(0, 0, this.width, this.height);
      context.imageSmoothingQuality = "high";
      if (this.base) drawCovering(context, this.base, this.width, this.height);
      return;
    }
    for (const stroke of this.strokes) {
      if (stroke.layer === layer || stroke.erases) trace(context, stroke);
    }
  }

  /** Return the base with the sketch, as a data URL of a PNG of the picture's size. */
  picture() {
    const flat = canvasOf(this.width, this.height);
    const layer = canvasOf(this.width, this.height);
    this.paint(flat, "base");
    this.paint(layer, "sketch");
    const context = flat.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(layer, 0, 0);
    return flat.toDataURL("image/png");
  }

  /** Return the mask, white where it is drawn anew; null if nothing is. */
  mask() {
    if (!this.strokes.some((stroke) => stroke.layer === "mask")) return null;
    const layer = canvasOf(this.width, this.height);
    this.paint(layer, "mask");
    const { data } = layer.getContext("2d").getImageData(0, 0, this.width, this.height);
    if (!data.some(Boolean)) return null;  // all of it was erased
    const white = layer.getContext("2d");
    white.setTransform(1, 0, 0, 1, 0, 0);
    white.globalCompositeOperation = "source-in";
    white.fillStyle = "#fff";
    white.fillRect(0, 0, this.width, this.height);
    const flat = canvasOf(this.width, this.height);
    const context = flat.getContext("2d");
    context.fillRect(0, 0, this.width, this.height);
    context.drawImage(layer, 0, 0);
    return flat.toDataURL("image/png");
  }
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

/** Draw a bitmap over the whole area, cut at the longer side. */
function drawCovering(context, bitmap, width, height) {
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
}

/**
 * Draw a stroke, smoothed by curves through the middles between its points.
 * @param {CanvasRenderingContext2D} context @param {Stroke} stroke
 */
export function trace(context, { erases, colour, size, points }) {
  context.globalCompositeOperation = erases ? "destination-out" : "source-over";
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  const [first, ...rest] = points;
  context.beginPath();
  context.moveTo(...first);
  if (!rest.length) context.lineTo(first[0] + 0.01, first[1]);
  rest.forEach(([x, y], i) => {
    const [px, py] = points[i];
    context.quadraticCurveTo(px, py, (px + x) / 2, (py + y) / 2);
  });
  if (rest.length) context.lineTo(...rest.at(-1));
  context.stroke();
}
