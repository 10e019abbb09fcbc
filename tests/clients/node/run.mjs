// Drives OpenAI's Node client through prepared steps: a JSON plan comes in on stdin, one JSON line a step
// goes out. It judges nothing: what was expected is known to the Python side (tests/clients/scenario.py).
//
// CLIENT_FOLDER names the folder that `npm ci` filled.
import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(join(process.env.CLIENT_FOLDER, "package.json"));
const { OpenAI, toFile } = require("openai");
const plan = JSON.parse(readFileSync(0, "utf8"));
const kept = new Map();
const folder = mkdtempSync(join(tmpdir(), "node-client-"));

const camel = (name) => name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());
const at = (value, path) =>
  path.split(".").reduce((inner, step) => (step === "-1" ? inner.at(-1) : inner[step]), value);

async function resolved(value) {
  if (Array.isArray(value)) return Promise.all(value.map(resolved));
  if (value === null || typeof value !== "object") return value;
  if ("$kept" in value) return kept.get(value.$kept) ?? "nothing-kept";
  if ("$file" in value) {
    if (!value.stream) return toFile(Buffer.from(value.$file.text), value.$file.name);
    // A stream has no length: the form goes out in chunks.
    const path = join(folder, value.$file.name);
    writeFileSync(path, value.$file.text);
    return createReadStream(path);
  }
  const entries = await Promise.all(Object.entries(value).map(async ([k, v]) => [k, await resolved(v)]));
  return Object.fromEntries(entries);
}

async function call(step) {
  const client = new OpenAI({
    baseURL: plan.base_url,
    apiKey: plan.api_key,
    adminAPIKey: plan.api_key,
    maxRetries: 0,
    ...(step.client ? { apiKey: step.client.api_key, adminAPIKey: step.client.api_key } : {}),
  });
  const names = step.call.split(".").map(camel);
  const method = names.pop();
  const resource = names.reduce((inner, name) => inner[name], client);
  const given = await resolved(step.on ?? []);
  const body = { ...(await resolved(step.with ?? {})), ...(await resolved(step.body ?? {})) };
  if (step.with || step.body) given.push(body);
  const options = {};
  if (step.query) options.query = step.query;
  if (step.headers) options.headers = step.headers;
  if (Object.keys(options).length) {
    // A call that takes parameters takes its options after them.
    if (step.empty_params) given.push({});
    given.push(options);
  }
  const answer = resource[method](...given);
  if (step.each) {
    const items = [];
    // A stream is waited for first; a list that was waited for is its first page, which goes on by itself.
    for await (const item of await answer) items.push(item);
    return items;
  }
  const value = await answer;
  if (step.read) return value.text();
  return value?.constructor?.name?.endsWith("Page") ? value.body : value;
}

async function take(step) {
  for (;;) {
    const value = await call(step);
    if (!step.until || step.until.includes(value.status) || value.status === "failed") return value;
    await new Promise((wake) => setTimeout(wake, 100));
  }
}

for (const step of plan.steps) {
  let line;
  try {
    const value = await take(step);
    for (const [name, path] of Object.entries(step.keep ?? {})) kept.set(name, at(value, path));
    line = { value };
  } catch (error) {
    const { status = null, code = null, param = null, type = null, message } = error;
    line = { error: { class: error.constructor.name, status, code, param, type, message } };
  }
  process.stdout.write(JSON.stringify(line) + "\n");
}
rmSync(folder, { recursive: true });
