"use strict";
(() => {
  const root = document.documentElement, dock = document.getElementById("dock"), content = document.getElementById("content");
  const rows = [...document.querySelectorAll(".row")], byId = new Map(rows.map(row => [row.id, row]));
  const wide = matchMedia("(min-width: 901px)"), search = document.getElementById("search"), found = document.getElementById("found");
  let current = null, kept = false, open = true, matches = [];

  root.classList.add("js");
  root.dataset.tier = "written";
  for (const hidden of document.querySelectorAll(".tools, .keys")) hidden.hidden = false;
  rows.forEach((row, k) => { row.tabIndex = k ? -1 : 0; });

  function place() {
    dock.hidden = !open || !wide.matches;
    root.style.setProperty("--dock", dock.hidden ? "0px" : "min(42vh, 430px)");
  }

  function light(row) {
    if (row === current) return;
    if (current) { current.classList.remove("lit", "kept"); current.tabIndex = -1; }
    current = row;
    row.classList.add("lit");
    row.tabIndex = 0;
    const parts = row.dataset.part.split(" ");
    for (const part of document.querySelectorAll(".u a")) part.classList.toggle("here", parts.includes(part.dataset.part));
    for (const link of document.querySelectorAll(".map a")) link.classList.toggle("here", link.dataset.group === row.dataset.group);
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
  }

  function keep(row) {
    light(row);
    kept = open = true;
    row.classList.add("kept");
    document.getElementById("state").textContent = "kept open; Esc lets go";
    history.replaceState(null, "", "#" + row.id);
    place();
  }

  function letGo() {
    if (kept) {
      kept = false;
      if (current) current.classList.remove("kept");
      document.getElementById("state").textContent = "";
      history.replaceState(null, "", location.pathname + location.search);
    } else open = false;
    place();
  }

  function toggle(row) {
    const more = row.querySelector(".more");
    light(row);
    if (more) more.open = !more.open;
    history.replaceState(null, "", "#" + row.id);
  }

  function walk(by) {
    let k = current ? rows.indexOf(current) : -1;
    const fits = matches.length ? new Set(matches) : null;
    do k += by; while (rows[k] && (rows[k].hidden || fits && !fits.has(rows[k])));
    if (!rows[k]) return;
    const was = kept;
    light(rows[k]);
    if (was) keep(rows[k]);
    rows[k].focus({ preventScroll: true });
    rows[k].scrollIntoView({ block: "nearest" });
  }

  const rowOf = event => event.target.closest && event.target.closest(".row");
  let pointer = "";
  document.addEventListener("mouseover", event => {
    const row = rowOf(event), at = event.screenX + " " + event.screenY;
    if (row && !kept && wide.matches && at !== pointer) light(row);  // a row that scrolls below a mouse at rest is not meant
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
      if (event.target === search && search.value) { search.value = ""; find(); search.blur(); } else letGo();
      return;
    }
    if (event.target.closest("input, select, button, summary, #content")) return;
    const inRow = rowOf(event), columns = document.querySelectorAll(".columns button");
    if (event.key === "ArrowDown" || event.key === "j") { event.preventDefault(); walk(1); }
    else if (event.key === "ArrowUp" || event.key === "k") { event.preventDefault(); walk(-1); }
    else if (event.key === "Enter" && inRow && !event.target.closest("a")) {
      event.preventDefault();
      if (wide.matches) keep(inRow); else toggle(inRow);
    }
    else if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if ("123".includes(event.key)) columns[event.key - 1].click();
  });

  for (const button of document.querySelectorAll(".columns button")) button.addEventListener("click", () => {
    const shown = [...document.querySelectorAll('.columns [aria-pressed="true"]')];
    if (shown.length === 1 && shown[0] === button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const off = [...document.querySelectorAll('.columns [aria-pressed="false"]')].map(b => b.dataset.column);
    root.dataset.hide = off.join(" ");
    root.style.setProperty("--shown", 3 - off.length);
    for (const row of rows) row.hidden = ![...row.querySelectorAll(".cell:not(.none)")].some(cell => !off.includes(cell.dataset.of));
    if (current) current.scrollIntoView({ block: "nearest" });
  });
  document.getElementById("heat").addEventListener("change", event => {
    if (event.target.value) root.dataset.heat = event.target.value; else delete root.dataset.heat;
  });
  document.getElementById("tier").addEventListener("change", event => { root.dataset.tier = event.target.value; });
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  document.getElementById("previous").addEventListener("click", () => walk(-1));
  document.getElementById("next").addEventListener("click", () => walk(1));
  document.getElementById("close").addEventListener("click", () => { kept = false; letGo(); if (current) current.focus(); });

  let texts = null;
  function find() {
    const words = search.value.trim().toLowerCase();
    texts = texts || rows.map(row => (row.id + " " + row.textContent).toLowerCase());
    matches = words ? rows.filter((row, k) => texts[k].includes(words)) : [];
    rows.forEach((row, k) => row.classList.toggle("dim", Boolean(words) && !texts[k].includes(words)));
    found.textContent = words ? (matches.length === 1 ? "1 row" : matches.length + " rows") : "";
  }
  search.addEventListener("input", find);
  search.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !matches.length) return;
    event.preventDefault();
    const next = matches[(matches.indexOf(current) + 1) % matches.length];
    light(next);
    next.scrollIntoView({ block: "center" });
  });

  function follow() {
    const row = byId.get(decodeURIComponent(location.hash.slice(1)));
    if (!row) return;
    if (wide.matches) keep(row);
    else { light(row); const more = row.querySelector(".more"); if (more) more.open = true; }
    row.scrollIntoView({ block: wide.matches ? "center" : "start" });
    row.focus({ preventScroll: true });
  }
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => { for (const more of document.querySelectorAll(".noted > .more")) more.open = true; });
  wide.addEventListener("change", place);
  light(byId.get("model/double_conv/bn") || rows[0]);
  place();
  follow();
})();
