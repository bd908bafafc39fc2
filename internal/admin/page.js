"use strict";
(() => {
  const interval = 2000; // ms
  const element = (id) => document.getElementById(id);
  let inventory = element("now").dataset.inventory;

  async function part(name) {
    const answer = await fetch("/?part=" + name, { signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(answer.status);
    const holder = document.createElement("template");
    holder.innerHTML = await answer.text();
    return [...holder.content.children];
  }

  function show(elements) {
    for (const fresh of elements) element(fresh.id).replaceWith(fresh);
  }

  async function refresh() {
    try {
      const [now] = await part("now");
      if (now.dataset.inventory !== inventory) {
        show(await part("inventory"));
        inventory = now.dataset.inventory;
        filter();
      }
      show([now]);
      element("lost").hidden = true;
    } catch {
      element("lost").hidden = false;
    }
  }

  function filter() {
    const words = element("find").value.toLowerCase().split(/\s+/);
    const tasks = document.querySelectorAll("article");
    let shown = 0;
    for (const task of tasks) {
      const text = task.innerHTML.toLowerCase();
      task.hidden = !words.every((word) => text.includes(word));
      if (!task.hidden) shown++;
    }
    element("count").textContent = shown === tasks.length ? shown : shown + " of " + tasks.length;
    element("search").hidden = tasks.length === 0;
  }

  filter();
  element("find").addEventListener("input", filter);
  addEventListener("hashchange", () => { // a cell was chosen
    element("find").value = "";
    filter();
    document.querySelector(":target")?.scrollIntoView();
  });
  (async () => {
    for (;;) {
      await new Promise((done) => setTimeout(done, interval));
      if (!document.hidden) await refresh();
    }
  })();
})();
