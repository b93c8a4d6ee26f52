#!/usr/bin/env node
// Edit a picture: node edit.mjs IMAGE_URL PROMPT FILE
// Needs Node 18 or newer, and RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID in the environment.
import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const { RUNPOD_API_KEY, RUNPOD_ENDPOINT_ID, RUNPOD_ENDPOINT_BASE_URL, TIME_LIMIT_S } = process.env;
const base = `${RUNPOD_ENDPOINT_BASE_URL || "https://api.runpod.ai/v2"}/${RUNPOD_ENDPOINT_ID}`;
const limitS = Number(TIME_LIMIT_S || 1800); // a first job waits for a worker that loads its model
const UNSURE = [429, 500, 502, 503, 504]; // of RunPod's API: worth asking again

function giveUp(why) {
  console.error(why);
  process.exit(1);
}

function api(method, path, body) {
  const headers = { Authorization: `Bearer ${RUNPOD_API_KEY}`, "Content-Type": "application/json" };
  const signal = AbortSignal.timeout(30_000);
  return fetch(`${base}/${path}`, { method, headers, body: body && JSON.stringify(body), signal });
}

/** The job as RunPod tells it, or why it could not be asked for this time. */
async function status(job) {
  let answer;
  try {
    answer = await api("GET", `status/${job}`);
    if (answer.ok) return await answer.json();
  } catch (error) {
    return { status: error.cause?.code ?? error.name };
  }
  if (UNSURE.includes(answer.status)) return { status: `HTTP ${answer.status}` };
  return giveUp(`job ${job} cannot be asked for: HTTP ${answer.status}. After 30 minutes RunPod forgets a job.`);
}

/** What a failed job's error says, and what to do. It is JSON text, or RunPod's own words. */
function inWords(error) {
  try {
    const { type, message, details } = JSON.parse(error);
    return `${type}: ${message}\n${details.retryable ? "Run this again." : "The same request would fail again."}`;
  } catch {
    return `FAILED: ${error}`;
  }
}

/** Submit a job, wait for its end, and return its output. */
async function edit(input) {
  const answer = await api("POST", "run", { input });
  if (!answer.ok) giveUp(`RunPod did not take the job: HTTP ${answer.status} ${await answer.text()}`);
  const job = (await answer.json()).id;
  const end = Date.now() + limitS * 1000;
  let told;
  for (let pauseMs = 500; Date.now() < end; pauseMs = Math.min(pauseMs * 1.5, 10_000)) {
    const state = await status(job);
    if (state.status === "COMPLETED") return state.output;
    if (state.status === "FAILED") giveUp(inWords(state.error));
    if (["CANCELLED", "TIMED_OUT"].includes(state.status)) giveUp(`job ${job} is ${state.status}`);
    const news = `${state.status} ${JSON.stringify(state.output ?? "")}`;
    if (news !== told) console.error(news);
    told = news;
    await sleep(pauseMs);
  }
  const cancelled = await api("POST", `cancel/${job}`).then((answer) => answer.ok, () => false);
  const endOfIt = cancelled ? "was cancelled" : "could not be cancelled: it goes on, and is paid for";
  return giveUp(`job ${job} took longer than ${limitS} s and ${endOfIt}`);
}

const [imageUrl, prompt, file] = process.argv.slice(2);
if (!file || !RUNPOD_API_KEY || !RUNPOD_ENDPOINT_ID) {
  giveUp("node edit.mjs IMAGE_URL PROMPT FILE, with RUNPOD_API_KEY and RUNPOD_ENDPOINT_ID in the environment");
}
const output = await edit({ image_url: imageUrl, prompt }).catch((error) =>
  giveUp(`RunPod did not take the job: ${error.cause?.code ?? error.message}`),
);
const { presigned_url: link, meta } = output?.result ?? {};
if (!link || !meta) {
  giveUp("there is no picture in the answer: does RUNPOD_ENDPOINT_ID name an endpoint of this worker?");
}
// The link is all that is needed: the API key is for RunPod alone.
const picture = await fetch(link, { signal: AbortSignal.timeout(60_000) }).catch((error) =>
  giveUp(`the link does not open: ${error.cause?.code ?? error.name}`),
);
if (!picture.ok) giveUp(`the link does not open: HTTP ${picture.status}`);
await writeFile(file, Buffer.from(await picture.arrayBuffer()));
console.log(`${file}: seed ${meta.seed}`);
