/** One PNG of a plot: its pictures with the labels of columns and rows. */

const GAP = 8;
const FONT = "ui-sans-serif, system-ui, sans-serif";

/** @param {string} url */
async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/**
 * Draw the pictures of a plot; cells without one stay empty.
 * @param {{title: string, columns: string[], rows: string[], urls: (string|null)[][]}} plot
 * @returns {Promise<Blob>}
 */
export async function sheetOf({ title, columns, rows, urls }) {
  const pictures = await Promise.all(urls.map((row) => Promise.all(row.map((url) => url && load(url)))));
  const all = pictures.flat().filter(Boolean);
  if (!all.length) throw new Error("The plot has no picture yet.");
  const width = Math.max(...all.map((one) => one.naturalWidth));
  const height = Math.max(...all.map((one) => one.naturalHeight));
  const size = Math.max(13, Math.round(width / 12));
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  pen.font = `${size}px ${FONT}`;
  const left = Math.ceil(Math.max(0, ...rows.map((row) => pen.measureText(row).width))) + 2 * GAP;
  const top = Math.round(2.2 * size) + (title ? Math.round(1.8 * size) : 0);
  canvas.width = left + columns.length * (width + GAP);
  canvas.height = top + rows.length * (height + GAP);
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "black";
  pen.textBaseline = "middle";
  pen.font = `600 ${size}px ${FONT}`;
  pen.fillText(title, GAP, 1.2 * size, canvas.width - 2 * GAP);
  pen.font = `${size}px ${FONT}`;
  pen.textAlign = "center";
  columns.forEach((label, i) => {
    pen.fillText(label, left + i * (width + GAP) + width / 2, top - size, width);
  });
  pen.textAlign = "right";
  rows.forEach((label, j) => {
    pen.fillText(label, left - GAP, top + j * (height + GAP) + height / 2);
  });
  pictures.forEach((row, j) => row.forEach((picture, i) => {
    if (picture) pen.drawImage(picture, left + i * (width + GAP), top + j * (height + GAP));
  }));
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error(
      `A sheet of ${canvas.width} × ${canvas.height} pixels is too large for this browser.`))));
  });
}
