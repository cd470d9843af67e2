/** The server's own interface, /api. Errors are `ApiError`s, whose message is for the user. */

/** @typedef {import("./events.js").Body} Body @typedef {import("./events.js").Picture} Picture */
/**
 * @typedef {object} Status
 * @property {string} id
 * @property {"queued"|"drawing"|"done"|"failed"|"cancelled"} state
 * @property {number} place how many pictures of others are drawn before it
 * @property {number} step @property {number} steps
 * @property {Picture[]} pictures @property {string|null} error
 * @property {string} [preview] a data URL
 */

export class ApiError extends Error {
  /** @param {string} message @param {{argument?: string|null, status?: number}} [about] */
  constructor(message, { argument = null, status = 0 } = {}) {
    super(message);
    this.argument = argument;
    this.status = status;
  }
}

/** The page that takes its turn in the queue: one of each tab. */
const client = (sessionStorage["ldm.client"] ??= crypto.randomUUID?.() ?? `${Math.random()}`);

/**
 * Fetch from the server; a refusal raises ApiError with the server's words.
 * @param {string} path @param {RequestInit & {json?: any}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { json, headers, ...options } = {}) {
  const own = { "X-Client-Id": client, ...headers };
  if (json !== undefined) {
    Object.assign(own, { "Content-Type": "application/json" });
    options = { method: "POST", body: JSON.stringify(json), ...options };
  }
  let answer;
  try {
    answer = await fetch(path, { headers: own, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is `ldm serve` still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** @param {Response} answer */
async function refusal(answer) {
  const status = answer.status;
  try {
    const { error, detail } = await answer.json();
    if (error?.message) return new ApiError(error.message, { ...error, status });
    if (Array.isArray(detail)) {  // FastAPI's own
      const [{ loc, msg }] = detail;
      return new ApiError(`${loc.at(-1)}: ${msg}`, { argument: loc.at(-1), status });
    }
    if (detail) return new ApiError(String(detail), { status });
  } catch { /* no JSON */ }
  return new ApiError(`The server answered ${status} ${answer.statusText}.`, { status });
}

/** @param {string} path @param {RequestInit} [options] */
export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/**
 * Draw; returns the last status. Aborting the signal leaves, which cancels the job.
 * @param {Body} body
 * @param {{signal?: AbortSignal, onStatus?: (status: Status) => void}} [options]
 * @returns {Promise<Status>}
 */
export async function draw(body, { signal, onStatus } = {}) {
  const answer = await request("/api/draw", { json: body, signal });
  for await (const { name, data } of eventsOf(answer)) {
    const status = /** @type {Status} */ (data);
    if (name === "status") onStatus?.(status);
    if (name !== "end") continue;
    if (status.state === "failed") throw new ApiError(status.error ?? "The drawing failed.");
    return status;
  }
  throw new ApiError("The server stopped before the picture was finished.");
}

/**
 * Read server-sent events of an answer.
 * @param {Response} answer
 * @returns {AsyncGenerator<{name: string, data: any}>}
 */
export async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop() ?? "";
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map(
          (line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()],
        ));
        if (fields.data) yield { name: fields.event ?? "message", data: JSON.parse(fields.data) };
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection to the server broke off.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
