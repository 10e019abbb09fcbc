// The grader lab: line numbers beside the source, Tab that indents, the line of an error, no second press.
"use strict";

document.documentElement.classList.add("scripted");

class SourceCode extends HTMLElement {
  connectedCallback() {
    this.field = this.querySelector("textarea");
    this.gutter = document.createElement("div");
    this.gutter.className = "gutter";
    this.gutter.setAttribute("aria-hidden", "true");
    this.prepend(this.gutter);
    this.classList.add("numbered");
    this.field.addEventListener("input", () => this.number());
    this.field.addEventListener("scroll", () => { this.gutter.scrollTop = this.field.scrollTop; });
    this.field.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => { this.gutter.style.height = `${this.field.offsetHeight}px`; }).observe(this.field);
    this.number();
  }

  number() {
    const count = this.field.value.split("\n").length;
    if (count === this.gutter.childElementCount) return;
    const wrong = Number(this.dataset.line);
    const numbers = Array.from({ length: count }, (_, place) => {
      const line = document.createElement("div");
      line.textContent = place + 1;
      if (place + 1 === wrong) line.className = "wrong-line";
      return line;
    });
    this.gutter.replaceChildren(...numbers);
  }

  // Escape frees Tab once, so that the keyboard can leave.
  press(event) {
    if (event.key === "Escape") {
      this.isFree = true;
    } else if (event.key === "Tab" && !this.isFree && !event.shiftKey && !event.ctrlKey && !event.altKey) {
      event.preventDefault();
      this.field.setRangeText("    ", this.field.selectionStart, this.field.selectionEnd, "end");
      this.field.dispatchEvent(new Event("input", { bubbles: true }));
    } else if (event.key !== "Tab") {
      this.isFree = false;
    }
  }

  go(line) {
    const lines = this.field.value.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    this.field.focus();
    this.field.setSelectionRange(start, start + (lines[line - 1] ?? "").length);
    const height = parseFloat(getComputedStyle(this.field).lineHeight);
    this.field.scrollTop = Math.max(0, (line - 4) * height);
  }
}

customElements.define("x-code", SourceCode);

for (const button of document.querySelectorAll("[data-goto]")) {
  button.addEventListener("click", () => document.querySelector("x-code")?.go(Number(button.dataset.goto)));
}

// Where results stand below the form they are what was asked for.
const results = document.getElementById("results");
if (results.dataset.found && matchMedia("(max-width: 1199px)").matches) results.scrollIntoView();

const lab = document.getElementById("lab");
const state = document.getElementById("state");
lab.addEventListener("input", (event) => {
  if (state && event.target.closest("[aria-label='The grader']")) state.textContent = state.dataset.changed;
});
// Two presses would grade twice.
const presses = [...document.querySelectorAll("button[name=do]")];
lab.addEventListener("submit", (event) => {
  const pressed = event.submitter;
  setTimeout(() => {
    presses.forEach((button) => { button.disabled = true; });
    if (pressed && pressed.value !== "rows") {
      pressed.dataset.words = pressed.textContent;
      pressed.textContent = "Running…";
    }
  });
});
addEventListener("pageshow", () => {
  presses.forEach((button) => {
    button.disabled = false;
    if (button.dataset.words) button.textContent = button.dataset.words;
  });
});
