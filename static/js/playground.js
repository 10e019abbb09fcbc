// The Playground: each column is asked as a stream. Without this script the form answers with the whole page.
"use strict";

const form = document.getElementById("playground");
const run = document.getElementById("run");
const halt = document.getElementById("halt");
const place = document.getElementById("columns");
let asking = null;

// What the server made is trusted: it escapes every text of a model.
function fragment(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  return holder.content.firstElementChild;
}

function column(number, name) {
  const section = document.createElement("section");
  section.className = "answers";
  section.id = `column-${number}`;
  section.dataset.testid = "column";
  section.setAttribute("aria-label", name);
  section.setAttribute("aria-busy", "true");
  const header = document.createElement("header");
  const title = document.createElement("h2");
  title.textContent = name;
  const reading = document.createElement("span");
  reading.className = "reading";
  reading.textContent = "Waiting for the first token";
  header.append(title, reading);
  section.append(header);
  return section;
}

function said(section, number) {
  let found = section.querySelector(`[data-sample="${number}"]`);
  if (found) return found;
  const article = document.createElement("article");
  article.className = "sample";
  found = document.createElement("div");
  found.className = "said";
  found.tabIndex = 0;
  found.dataset.sample = number;
  article.append(found);
  const after = [...section.querySelectorAll("[data-sample]")].find((one) => Number(one.dataset.sample) > number);
  if (after) after.parentElement.before(article);
  else section.append(article);
  return found;
}

// The dialog shows what was asked last.
function code(told) {
  for (const name of ["python", "curl"]) {
    const holder = document.getElementById(`code-${name}`);
    holder.querySelector("code").textContent = told[name];
    holder.querySelector("x-copy").dataset.text = told[name];
  }
}

function tell(section, told) {
  const reading = section.querySelector(".reading");
  if (told.curl) code(told);
  else if (told.html) section.replaceWith(fragment(told.html));
  else if (told.stage) reading.textContent = told.stage;
  else {
    reading.textContent = "Answering";
    said(section, told.sample).append(told.text);
  }
}

function refuse(section, words) {
  const note = document.createElement("p");
  note.className = "note bad";
  note.dataset.testid = "column-error";
  note.textContent = words;
  section.setAttribute("aria-busy", "false");
  section.querySelector(".reading").textContent = "";
  section.append(note);
}

async function ask(number, section, signal) {
  const body = new FormData(form);
  body.set("column", number);
  const answer = await fetch("/playground/stream", { method: "POST", body: new URLSearchParams(body), signal });
  if (answer.status === 422) {
    const told = await answer.json();
    refuse(section, told.message);
    document.getElementById(told.field)?.focus();
    return;
  }
  if (!answer.ok) {
    refuse(section, answer.status === 401 ? "Sign in again: reload the page." : "This did not work. Reload the page.");
    return;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) tell(section, JSON.parse(event.slice(6)));
  }
  if (section.isConnected) refuse(section, "The answer broke off. Run it again.");
}

form?.addEventListener("submit", async (event) => {
  if (event.submitter && event.submitter.value !== "run") return;
  event.preventDefault();
  const names = ["model", "compare"].map((name) => form.elements[name].value).filter(Boolean);
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  const sections = (names.length ? names : [""]).map((name, number) => column(number, name));
  place.replaceChildren(...sections);
  place.classList.toggle("pair", sections.length > 1);
  halt.hidden = false;
  await Promise.all(
    sections.map((section, number) =>
      ask(number, section, mine.signal).catch(() => {
        refuse(section, mine.signal.aborted ? "Stopped." : "The connection was lost. Run it again.");
      })
    )
  );
  if (asking === mine) halt.hidden = true;
});
halt?.addEventListener("click", () => asking?.abort());

// Loading a stopped model keeps what was typed; without this script its button opens the page anew.
place?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const load = event.target;
  event.submitter.disabled = true;
  const answer = await fetch(load.action, { method: "POST", body: new URLSearchParams(new FormData(load)) }).catch(() => null);
  const words = document.createElement("p");
  words.textContent = answer?.ok ? "It answers again. Run to ask it." : "This did not work. Reload the page.";
  load.closest(".note").replaceChildren(words);
  if (answer?.ok) run.focus();
});

// Ctrl or Cmd with Enter runs, from any field.
form?.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  form.requestSubmit(run);
});
