"use strict";
// Fetches this page again and swaps its content, so that scroll position and a selection outside of it stay.
(() => {
  const PERIOD_MS = 2000;
  const contact = document.getElementById("contact");
  let lastHeard = new Date();

  async function refresh() {
    if (!document.hidden) {
      try {
        const reply = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(8000) });
        if (!reply.ok) throw new Error(`status ${reply.status}`);
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        document.getElementById("content").replaceWith(page.getElementById("content"));
        document.title = page.title;
        lastHeard = new Date();
        contact.hidden = true;
      } catch {
        contact.textContent = `No contact with the recorder since ${lastHeard.toLocaleTimeString()}; these figures are old.`;
        contact.hidden = false;
      }
    }
    setTimeout(refresh, PERIOD_MS);
  }
  setTimeout(refresh, PERIOD_MS);
})();
