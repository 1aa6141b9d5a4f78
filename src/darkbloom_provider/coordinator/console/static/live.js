// Keeps a page with live figures up to date: asks for it again every so many seconds and changes
// what differs in its <main>. Nodes that stay the same stay the same nodes, so the focus, the
// selection, open details and every scroll position are kept, and nothing is read out anew. Without
// this script, the page is as it was when it was loaded.
"use strict";

(() => {
  const main = document.querySelector("main[data-refresh]");
  const every = Number(main?.dataset.refresh) * 1000;
  if (!every) return;

  const SLOWEST = 5 * 60 * 1000;
  let wait = every;
  let timer;
  let due = false;

  const address = new URL(location.href);
  // On arrival from the payment service it is asked once how things stand.
  address.searchParams.delete("stripe_return");

  function changed(control) {
    if (control.type === "hidden") return false;
    if (control.options) {
      const initial = [...control.options].findIndex((option) => option.defaultSelected);
      return control.selectedIndex !== Math.max(initial, 0);
    }
    return control.value !== control.defaultValue || control.checked !== control.defaultChecked;
  }

  function inUse() {
    const controls = [...main.querySelectorAll("input, select, textarea")];
    return controls.includes(document.activeElement) || controls.some(changed);
  }

  /** What tells the element with the focus from others, wherever it moves to. */
  function identity(element) {
    return ["id", "href", "name", "value", "aria-label"]
      .map((name) => element.getAttribute(name) ?? "")
      .concat(element.tagName, element.tagName === "SUMMARY" ? element.textContent : "")
      .join("\n");
  }

  function setAttributes(before, after) {
    // What the visitor opened stays open.
    const own = (name) => name === "open" && before.tagName === "DETAILS";
    for (const { name } of [...before.attributes]) {
      if (!after.hasAttribute(name) && !own(name)) before.removeAttribute(name);
    }
    for (const { name, value } of after.attributes) {
      if (before.getAttribute(name) !== value && !own(name)) before.setAttribute(name, value);
    }
  }

  function become(before, after) {
    if (before.isEqualNode(after)) return;
    if (before.nodeName !== after.nodeName) {
      before.replaceWith(document.importNode(after, true));
    } else if (before.nodeType !== Node.ELEMENT_NODE) {
      before.data = after.data;
    } else {
      setAttributes(before, after);
      const [old, fresh] = [[...before.childNodes], [...after.childNodes]];
      old.slice(fresh.length).forEach((node) => node.remove());
      fresh.forEach((node, index) => {
        if (index < old.length) become(old[index], node);
        else before.append(document.importNode(node, true));
      });
    }
  }

  function show(fresh) {
    const focused = main.contains(document.activeElement) ? document.activeElement : null;
    const wanted = focused && identity(focused);
    become(main, fresh);
    if (!focused || focused === main) return;
    if (focused === document.activeElement && identity(focused) === wanted) return;
    // Rows have moved under it, or it is gone.
    const all = [...main.querySelectorAll("a, button, summary, [tabindex]")];
    (all.find((element) => identity(element) === wanted) ?? main).focus({ preventScroll: true });
  }

  async function refresh() {
    due = false;
    try {
      const reply = await fetch(address, { redirect: "manual", cache: "no-store" });
      // The session has ended, or what is shown is gone: no more to ask for.
      if (reply.type === "opaqueredirect" || reply.status === 404) return;
      if (!reply.ok) throw new Error(reply.statusText);
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      const fresh = page.querySelector("main[data-refresh]");
      if (fresh && !inUse()) show(fresh);
      wait = every;
    } catch {
      // What is shown stays, and is asked for more rarely.
      wait = Math.min(wait * 2, SLOWEST);
    }
    plan();
  }

  function plan() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (document.hidden) due = true;
      else if (inUse()) plan();
      else refresh();
    }, wait);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && due) refresh();
  });
  plan();
})();
