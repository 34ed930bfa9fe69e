"use strict";
(() => {
  const root = document.documentElement, dock = document.getElementById("dock"), content = document.getElementById("content");
  const rows = [...document.querySelectorAll(".row")], byId = new Map(rows.map(row => [row.id, row]));
  const wide = matchMedia("(min-width: 901px)"), search = document.getElementById("search"), found = document.getElementById("found");
  const state = document.getElementById("state"), closed = document.getElementById("closed"), top = document.querySelector(".top"), text = document.querySelector(".text");
  const passages = [...document.querySelectorAll(".text dl > div, .text > section, [aria-labelledby=measured]")];
  let current = null, kept = false, open = true, matches = [], hit = -1, soon = 0;

  root.classList.add("js");
  root.dataset.tier = "written";
  for (const hidden of document.querySelectorAll(".tools, .keys")) hidden.hidden = false;
  rows.forEach((row, k) => { row.tabIndex = k ? -1 : 0; });

  function place() {
    const away = !current || !wide.matches || text.getBoundingClientRect().top < innerHeight / 2;
    dock.hidden = away || !open;
    closed.hidden = away || open;
    root.style.setProperty("--dock", dock.offsetHeight + "px");
    root.style.setProperty("--top", top.offsetHeight - 1 + "px");
  }

  function light(row) {
    clearTimeout(soon);
    if (row === current) return;
    if (current) { current.classList.remove("lit", "kept"); current.tabIndex = -1; }
    current = row;
    row.classList.add("lit");
    row.tabIndex = 0;
    const parts = row.dataset.part.split(" "), links = [...document.querySelectorAll(".map a")];
    for (const part of document.querySelectorAll(".u a")) part.classList.toggle("here", parts.includes(part.dataset.part));
    const own = links.find(link => link.hash === "#" + row.id) || links.find(link => link.dataset.group === row.dataset.group);
    for (const link of links) link.classList.toggle("here", link === own);
    document.getElementById("what").textContent = row.id;
    const panel = row.querySelector(".panel");
    if (panel) content.replaceChildren(panel.cloneNode(true));
    else {
      const empty = document.createElement("p");
      empty.className = "empty";
      empty.textContent = "This row makes no operation of a training step.";
      content.replaceChildren(empty);
    }
    content.scrollTop = 0;
    place();
  }

  function keep(row) {
    light(row);
    kept = open = true;
    row.classList.add("kept");
    state.textContent = "kept open; Esc closes";
    history.replaceState(null, "", "#" + row.id);
    place();
  }

  function letGo() {
    if (kept) history.replaceState(null, "", location.pathname + location.search);
    kept = false;
    if (current) current.classList.remove("kept");
    state.textContent = "";
  }

  function close() {
    if (!current || !open) return;
    letGo();
    open = false;
    place();
  }

  function toggle(row) {
    const more = row.querySelector(".more");
    light(row);
    if (more) more.open = !more.open;
    history.replaceState(null, "", "#" + row.id);
  }

  const inSight = row => { const box = row.getBoundingClientRect(); return box.bottom > top.offsetHeight + 30 && box.top < innerHeight; };
  function walk(by) {
    if (matches.length) return go(hit + by);
    const from = kept || current && inSight(current) ? rows.indexOf(current) : rows.findIndex(row => !row.hidden && row.getBoundingClientRect().top > top.offsetHeight + 28) - by;
    let k = from + by;
    while (rows[k] && rows[k].hidden) k += by;
    if (!rows[k]) return;
    const was = kept;
    light(rows[k]);
    if (was) keep(rows[k]);
    rows[k].focus({ preventScroll: true });
    rows[k].scrollIntoView({ block: "nearest" });
  }

  function stay(change) {  // what is looked at keeps its place in the window
    const at = current && inSight(current) ? current : rows.find(row => !row.hidden && inSight(row));
    const before = at && at.getBoundingClientRect().top;
    change();
    if (at && !at.hidden) scrollBy(0, at.getBoundingClientRect().top - before);
  }

  const rowOf = event => event.target.closest && event.target.closest(".row");
  let pointer = "";
  document.addEventListener("mouseover", event => {
    const row = rowOf(event), at = event.screenX + " " + event.screenY;
    clearTimeout(soon);  // a row that is only crossed, on the way to the panel, is not meant
    if (row && !kept && wide.matches && at !== pointer) soon = setTimeout(light, 120, row);  // nor one that scrolls below a mouse at rest
    pointer = at;
  });
  document.addEventListener("focusin", event => { const row = rowOf(event); if (row && !kept) light(row); });
  document.addEventListener("click", event => {
    const row = rowOf(event);
    if (!row || event.target.closest(".more, a:not(.mark)") || String(getSelection())) return;
    event.preventDefault();
    if (!wide.matches) toggle(row);
    else if (kept && row === current) letGo();
    else keep(row);
  });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (event.target === search && search.value) { search.value = ""; find(); search.blur(); } else close();
      return;
    }
    if (event.target.closest("input, select, summary, #content")) return;
    const inRow = rowOf(event), columns = document.querySelectorAll(".columns button");
    if (event.key === "ArrowDown" || event.key === "j") { event.preventDefault(); walk(1); }
    else if (event.key === "ArrowUp" || event.key === "k") { event.preventDefault(); walk(-1); }
    else if (event.key === "Enter" && inRow && !event.target.closest("a")) {
      event.preventDefault();
      if (wide.matches) keep(inRow); else toggle(inRow);
    }
    else if (event.key === "/") { event.preventDefault(); search.focus({ preventScroll: true }); }
    else if ("123".includes(event.key)) columns[event.key - 1].click();
  });

  for (const button of document.querySelectorAll(".columns button")) button.addEventListener("click", () => {
    const shown = [...document.querySelectorAll('.columns [aria-pressed="true"]')];
    if (shown.length === 1 && shown[0] === button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const off = [...document.querySelectorAll('.columns [aria-pressed="false"]')].map(b => b.dataset.column);
    stay(() => {
      root.dataset.hide = off.join(" ");
      root.style.setProperty("--shown", 3 - off.length);
      for (const row of rows) row.hidden = ![...row.querySelectorAll(".cell:not(.none)")].some(cell => !off.includes(cell.dataset.of));
    });
    place();
  });
  const heat = document.getElementById("heat");
  const draw = () => stay(() => { if (heat.value) root.dataset.heat = heat.value; else delete root.dataset.heat; });
  heat.addEventListener("change", draw);
  document.getElementById("tier").addEventListener("change", event => {
    root.dataset.tier = event.target.value;
    heat.value = "difference";  // where it shows
    draw();
    place();
  });
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.getElementById("previous").addEventListener("click", () => walk(-1));
  document.getElementById("next").addEventListener("click", () => walk(1));
  document.getElementById("taller").addEventListener("click", event => {
    event.currentTarget.setAttribute("aria-pressed", dock.classList.toggle("tall"));
    place();
  });
  document.getElementById("close").addEventListener("click", () => { close(); if (current) current.focus({ preventScroll: true }); });

  let texts = null;
  const read = element => ((element.id || "") + " " + element.textContent).toLowerCase().replace(/\s+/g, " ");
  function find() {
    const words = search.value.trim().toLowerCase().replace(/\s+/g, " "), places = [...rows, ...passages];
    texts = texts || places.map(read);
    matches = words ? places.filter((at, k) => texts[k].includes(words) && !at.hidden) : [];
    places.forEach((at, k) => at.classList.toggle("dim", Boolean(words) && !texts[k].includes(words)));
    found.textContent = words ? "0 of 0" : "";
    go(0);
  }
  function go(to) {
    for (const at of passages) at.classList.remove("match");
    if (!matches.length) return;
    hit = (to + matches.length) % matches.length;
    const at = matches[hit], row = byId.get(at.id);
    found.textContent = `${hit + 1} of ${matches.length}`;
    if (row && kept) keep(row); else if (row) light(row); else at.classList.add("match");
    for (const code of at.querySelectorAll("details:not(.more)")) code.open = code.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
    at.scrollIntoView({ block: at.offsetHeight < innerHeight / 2 ? "center" : "start" });
  }
  search.addEventListener("input", find);
  search.addEventListener("keydown", event => {
    const by = { Enter: event.shiftKey ? -1 : 1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by && matches.length) { event.preventDefault(); go(hit + by); }
  });

  function follow() {
    const row = byId.get(decodeURIComponent(location.hash.slice(1)));
    if (!row) return;
    if (wide.matches) keep(row);
    else { light(row); const more = row.querySelector(".more"); if (more) more.open = true; }
    row.scrollIntoView({ block: wide.matches ? "center" : "start" });
    row.focus({ preventScroll: true });
    place();
  }
  addEventListener("hashchange", follow);
  addEventListener("scroll", place, { passive: true });
  addEventListener("resize", place);
  addEventListener("beforeprint", () => { for (const more of document.querySelectorAll(".noted > .more")) more.open = true; });
  place();
  follow();
})();
