/** What is done with a picture of the stage or the gallery: "again", "vary", "start", "settings". */
import { on, send } from "./events.js";
import { newSeed, read, write } from "./settings.js";

const CLOSE = 0.25;  // variation_strength: another picture of the same idea

/** Return what draws a picture in full, without what belongs to drafts and to views. */
function whole(body) {
  const { draft, record, ...rest } = body;
  return draft ? { ...read(), seed: body.seed } : rest;
}

const actions = {
  again({ body }) {
    send("draw", { body: { ...whole(body), seed: newSeed() } });
  },
  vary({ body }) {
    send("draw", {
      body: { ...whole(body), variation_seed: newSeed(), variation_strength: CLOSE },
    });
  },
  start({ picture }) {
    send("start-from", { name: "image", source: picture.url });
  },
  settings({ body }) {
    write(whole(body));
    document.getElementById("random-seed").checked = false;
  },
};

export function start() {
  on("use", (detail) => actions[detail.action]?.(detail));
}
