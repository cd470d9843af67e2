/** Start the parts of the page. Each is a module with `start()`; they speak by events.js. */
import { getJson } from "./api.js";
import * as canvas from "./canvas.js";
import * as drop from "./drop.js";
import { send } from "./events.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import * as prompt from "./prompt.js";
import * as queue from "./queue.js";
import * as settings from "./settings.js";
import * as stage from "./stage.js";
import * as use from "./use.js";
import * as views from "./views/index.js";

const parts = [settings, prompt, queue, stage, live, canvas, drop, use, keys, views];

for (const part of parts) part.start();
try {
  send("choices", await getJson("/page/choices.json"));
} catch (error) {
  send("error", error);
}
