// Every page: relative times, copying, dialogs, the theme. Small custom elements, no framework.
"use strict";

class RelativeTime extends HTMLElement {
  connectedCallback() {
    this.timer = setInterval(() => this.tell(), 20000);
    this.tell();
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  tell() {
    const time = this.querySelector("time");
    if (!time) return;
    const passed = (Date.now() - new Date(time.dateTime).getTime()) / 1000;
    const words = RelativeTime.words(passed);
    if (words && time.textContent !== words) time.textContent = words;
  }

  // The same steps as the server's `ago`; beyond a week its date stays.
  static words(passed) {
    if (passed < -45) return `in ${Math.max(1, Math.round(-passed / 60))} min`;
    if (passed < 45) return "just now";
    if (passed < 5400) return `${Math.max(1, Math.round(passed / 60))} min ago`;
    if (passed < 79200) return `${Math.round(passed / 3600)} h ago`;
    if (passed < 604800) return `${Math.max(1, Math.round(passed / 86400))} d ago`;
    return "";
  }
}

class CopyButton extends HTMLElement {
  connectedCallback() {
    if (this.isListening) return;
    this.isListening = true;
    this.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(this.dataset.text);
        toast("Copied");
      } catch {
        toast("Copying is not allowed here. Select the text instead.");
      }
    });
  }
}

function toast(words) {
  const place = document.getElementById("toast");
  if (!place) return;
  place.textContent = words;
  place.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { place.hidden = true; }, 6000);
}

customElements.define("x-time", RelativeTime);
customElements.define("x-copy", CopyButton);

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
  if (event.target.closest("[data-close]")) event.target.closest("dialog")?.close();
});

const THEMES = ["auto", "light", "dark"];
const ICONS = { auto: "monitor", light: "sun", dark: "moon" };
const button = document.getElementById("theme");
button?.addEventListener("click", async () => {
  const next = THEMES[(THEMES.indexOf(button.dataset.themeNow) + 1) % THEMES.length];
  const answer = await fetch(`/theme/${next}`, { method: "POST" });
  if (!answer.ok) return;
  button.dataset.themeNow = next;
  button.title = `Theme: ${next}`;
  button.setAttribute("aria-label", `Theme: ${next}. Change it`);
  const use = button.querySelector("use");
  use.setAttribute("href", use.getAttribute("href").replace(/#.*/, `#${ICONS[next]}`));
  document.documentElement.dataset.theme = next;
  document.dispatchEvent(new Event("themechange"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.dispatchEvent(new Event("themechange"));
});

document.getElementById("summary")?.focus();
