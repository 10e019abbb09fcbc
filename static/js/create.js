// The create form: ready texts for its two JSON fields, and a chosen upload wins over a chosen file.
"use strict";

const templates = JSON.parse(document.getElementById("templates").textContent);

for (const select of document.querySelectorAll("[data-fills]")) {
  select.addEventListener("change", () => {
    const field = document.getElementById(select.dataset.fills);
    const text = templates[select.dataset.kind][select.value];
    if (text === undefined) return;
    field.value = text;
    field.rows = Math.min(24, text.split("\n").length + 1);
    select.value = "";
    field.focus();
  });
}

// A saved version brings its own readiness, and leaves the JSON field without a use.
const saved = document.getElementById("saved_grader");
const inline = document.querySelector("[data-inline-grader]");
const show = () => {
  for (const block of document.querySelectorAll("[data-readiness]")) {
    block.hidden = block.dataset.readiness !== saved.value;
  }
  inline.hidden = saved.value !== "" && !inline.querySelector("[aria-invalid]");
};
saved.addEventListener("change", show);
show();

for (const upload of document.querySelectorAll("input[type=file]")) {
  upload.addEventListener("change", () => {
    const select = document.getElementById(upload.id.replace(/_upload$/, ""));
    if (upload.files.length && select) select.value = "";
  });
}

// Two presses would start two runs.
document.getElementById("create").addEventListener("submit", (event) => {
  const button = event.target.querySelector("button.primary");
  setTimeout(() => { button.disabled = true; });
});
addEventListener("pageshow", () => {
  document.querySelector("#create button.primary").disabled = false;
});
