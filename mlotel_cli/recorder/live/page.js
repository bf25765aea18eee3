"use strict";
// Fetches this page again and swaps its content, so that scroll position and focus stay. While text of it is selected,
// to be copied, nothing is swapped.
(() => {
  const PERIOD_MS = 2000;
  const contact = document.getElementById("contact");
  let lastHeard = new Date();

  function say(text, isCalm) {
    contact.hidden = !text;
    contact.classList.toggle("calm", isCalm);
    if (contact.textContent !== text) contact.textContent = text; // a screen reader says it again otherwise
  }

  async function refresh() {
    if (!getSelection().isCollapsed) {
      say(`Figures are those of ${lastHeard.toLocaleTimeString()} while text is selected.`, true);
    } else if (!document.hidden) {
      try {
        const reply = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(8000) });
        if (!reply.ok) throw new Error(`status ${reply.status}`);
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        if (!getSelection().isCollapsed) return;
        document.getElementById("content").replaceWith(page.getElementById("content"));
        document.title = page.title;
        lastHeard = new Date();
        say("", false);
      } catch {
        say(`No contact with the recorder since ${lastHeard.toLocaleTimeString()}; these figures are old.`, false);
      }
    }
  }
  async function run() {
    await refresh();
    setTimeout(run, PERIOD_MS);
  }
  setTimeout(run, PERIOD_MS);
})();
