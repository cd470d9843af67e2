/** The cross on the canvas, which the keys move; Space puts the pen down and up. */

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 1 / 32;  // of a side; with Shift four times as far

/** Where it is, in pixels of the sheet. */
export const cross = { x: 64, y: 64 };

/**
 * Move it by a key; returns whether the key is an arrow.
 * @param {KeyboardEvent} event @param {{width: number, height: number}} sheet
 */
export function moveCross({ key, shiftKey }, { width, height }) {
  const move = MOVES[key];
  if (!move) return false;
  const step = shiftKey ? 4 * STEP : STEP;
  cross.x = Math.min(width, Math.max(0, cross.x + move[0] * step * width));
  cross.y = Math.min(height, Math.max(0, cross.y + move[1] * step * height));
  return true;
}

/**
 * Show it while the keyboard is at the canvas.
 * @param {HTMLCanvasElement} surface @param {{width: number}} sheet
 */
export function drawCross(surface, sheet) {
  const context = surface.getContext("2d");
  context.clearRect(0, 0, surface.width, surface.height);
  if (!surface.matches(":focus-visible")) return;
  const scale = surface.width / sheet.width;
  const [x, y] = [cross.x * scale, cross.y * scale];
  for (const [width, colour] of [[5, "#fff"], [2, "#4f46e5"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    for (const [dx, dy] of [[14, 0], [0, 14]]) {
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
    context.stroke();
  }
}
