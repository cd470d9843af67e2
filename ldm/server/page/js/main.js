/** Start the parts of the page. Each is a module with `start()`; they speak by events.js. */
import * as canvas from "./canvas.js";
import * as drop from "./drop.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import * as models from "./models.js";
import * as prompt from "./prompt.js";
import * as queue from "./queue.js";
import * as settings from "./settings.js";
import * as stage from "./stage.js";
import * as use from "./use.js";
import * as views from "./views/index.js";

// models is the last: what it finds on the server goes to all others.
const parts = [settings, prompt, queue, stage, live, canvas, drop, use, keys, views, models];

for (const part of parts) part.start();
