/** The parts that show finished pictures. */
import * as gallery from "./gallery.js";
import * as large from "./large.js";
import * as plots from "./plots.js";
import * as views from "./views.js";

export function start() {
  for (const part of [large, views, plots, gallery]) part.start();
}
