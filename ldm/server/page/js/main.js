/** Start the parts of the page. Each is a module with `start()`; they speak by events.js. */
import { getJson } from "./api.js";
import { send } from "./events.js";

const parts = [];

for (const part of parts) part.start();
try {
  send("models", await getJson("/api/models"));
} catch (error) {
  send("error", error);
}
