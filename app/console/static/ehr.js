// Keeps an order's page current without reloading it: only the parts that changed are replaced (docs/demo-ehr.md).
const EVERY = 3000;

async function follow() {
  if (!document.hidden) {
    try {
      const response = await fetch(location.href, { credentials: "same-origin" });
      if (response.ok && !update(new DOMParser().parseFromString(await response.text(), "text/html"))) return;
    } catch {
      // The server is away for a moment: the page stays as it is, and the next turn asks again.
    }
  }
  setTimeout(follow, EVERY);
}

function update(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    // What has the keyboard's focus stays until the focus has moved on.
    if (next && next.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) part.innerHTML = next.innerHTML;
  }
  return fresh.querySelector("[data-follow]") !== null || document.activeElement?.closest("[data-live]");
}

setTimeout(follow, EVERY);
