// A job's live updates: events become points of the chart, the indicator says whether the stream is up.
// Parts of the page replace themselves (htmx); nothing here writes into them.
"use strict";

const live = document.getElementById("live");
const indicator = document.getElementById("live-indicator");
const toggle = document.getElementById("live-toggle");
let resume = null;
let waiting = null;
let lostTimers = [];
let isOver = false;

function say(words) {
  if (indicator) indicator.textContent = words;
}

function clock() {
  return new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

let lastAt = clock();

function lost() {
  if (lostTimers.length || isOver) return;
  lostTimers = [
    setTimeout(() => say("Reconnecting"), 3000),
    setTimeout(() => say(`Updates paused, last at ${lastAt}`), 30000),
  ];
}

function found() {
  lostTimers.forEach(clearTimeout);
  lostTimers = [];
  if (!waiting && !isOver) say("Live");
}

live?.addEventListener("job-event", (event) => {
  const told = JSON.parse(event.detail.data);
  if (told.point) document.querySelector("x-chart")?.add(told.point);
});
live?.addEventListener("ended", () => {
  isOver = true;
  say("Ended");
  if (toggle) toggle.hidden = true;
  const status = document.querySelector("[data-testid=job-status]");
  if (status) toast(`The run has ended: ${status.textContent.trim()}`);
});
document.addEventListener("htmx:sse:after:connection", found);
document.addEventListener("htmx:sse:before:connection", lost);
document.addEventListener("htmx:sse:error", lost);
document.addEventListener("htmx:sse:after:message", () => {
  lastAt = clock();
  found();
});
// While paused a message waits, and the ones behind it in the connection: nothing is dropped.
document.addEventListener("htmx:sse:before:message", (event) => {
  if (waiting) event.detail.waitUntil(waiting);
});

toggle?.addEventListener("click", () => {
  const isPaused = !waiting;
  if (isPaused) {
    waiting = new Promise((go) => { resume = go; });
  } else {
    waiting = null;
    resume();
  }
  toggle.setAttribute("aria-pressed", String(isPaused));
  toggle.setAttribute("aria-label", isPaused ? "Go on with live updates" : "Pause live updates");
  toggle.title = toggle.getAttribute("aria-label");
  const use = toggle.querySelector("use");
  use.setAttribute("href", use.getAttribute("href").replace(/#.*/, isPaused ? "#play" : "#pause"));
  say(isPaused ? `Paused at ${clock()}` : "Live");
});
