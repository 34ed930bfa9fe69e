"use strict";
(() => {
  const root = document.documentElement, all = selector => [...document.querySelectorAll(selector)], at = id => document.getElementById(id);
  const [dock, content, search, found, heat] = ["dock", "content", "search", "found", "heat"].map(at);
  const rows = all(".row"), top = document.querySelector(".top"), wide = matchMedia("(min-width: 901px)");
  const maps = JSON.parse(at("maps").textContent), tip = at("number"), sheets = {};
  const nothing = content.textContent;  // of a row without a panel
  let current = null, kept = false, open = true, matches = [], hit = -1, soon = 0, pointer = "", before = null;

  root.classList.add("js");
  root.dataset.tier = "written";
  for (const hidden of all(".tools, .keys")) hidden.hidden = false;
  rows.forEach((row, k) => { row.tabIndex = k ? -1 : 0; });

  function place() {
    const away = !current || !wide.matches || document.querySelector(".text").getBoundingClientRect().top < innerHeight / 2;
    dock.hidden = away || !open;
    at("closed").hidden = away || open;
    root.style.setProperty("--dock", dock.offsetHeight + "px");
    root.style.setProperty("--top", top.offsetHeight - 1 + "px");
  }

  function light(row) {
    clearTimeout(soon);
    if (row === current) return;
    if (current) { current.classList.remove("lit", "kept"); current.tabIndex = -1; }
    current = row;
    tip.hidden = true;
    row.classList.add("lit");
    row.tabIndex = 0;
    for (const part of all(".u a")) part.classList.toggle("here", row.dataset.part.split(" ").includes(part.dataset.part));
    const links = all(".map a");
    const own = links.find(link => link.hash === "#" + row.id) || links.find(link => link.dataset.group === row.dataset.group);
    for (const link of links) link.classList.toggle("here", link === own);
    at("what").textContent = row.id;
    const panel = row.querySelector(".panel");
    content.replaceChildren(panel ? panel.cloneNode(true) : nothing);
    content.scrollTop = 0;
    place();
  }

  function keep(row) {
    light(row);
    kept = open = true;
    row.classList.add("kept");
    at("state").textContent = "kept open; Esc closes";
    history.replaceState(null, "", "#" + row.id);
    place();
  }

  function letGo() {
    if (kept) history.replaceState(null, "", location.pathname + location.search);
    kept = false;
    if (current) current.classList.remove("kept");
    at("state").textContent = "";
  }

  function close() {
    if (!current || !open) return;
    letGo();
    open = false;
    place();
  }

  function choose(row) {  // in the panel below, on a small screen under the row
    if (wide.matches) return keep(row);
    light(row);
    for (const more of row.querySelectorAll(".more")) more.open = !more.open;
    history.replaceState(null, "", "#" + row.id);
  }

  const inSight = row => { const box = row.getBoundingClientRect(); return box.bottom > top.offsetHeight + 30 && box.top < innerHeight; };
  function walk(by) {
    if (matches.length) return go(hit + by);
    const shown = rows.filter(row => !row.hidden), here = current && (kept || inSight(current));
    const below = shown.findIndex(row => row.getBoundingClientRect().top > top.offsetHeight + 28), row = shown[here ? shown.indexOf(current) + by : below];
    if (!row) return;
    (kept ? keep : light)(row);
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function stay(change) {  // what is looked at keeps its place in the window
    const from = Math.max(0, rows.indexOf(current && inSight(current) ? current : rows.find(row => !row.hidden && inSight(row))));
    const near = [...rows.slice(from), ...rows.slice(0, from).reverse()], before = near.map(row => row.getBoundingClientRect().top);
    change();
    const k = near.findIndex(row => !row.hidden);  // what was hidden with its column is no place to hold on to
    if (inSight(near[0]) || k > 0) scrollBy(0, near[k].getBoundingClientRect().top - Math.min(before[k], innerHeight / 2));
    place();
  }

  const rowOf = event => event.target.closest && event.target.closest(".row");
  document.addEventListener("mouseover", event => {
    const row = rowOf(event), place = event.screenX + " " + event.screenY;
    clearTimeout(soon);  // a row that is only crossed, on the way to the panel, is not meant
    if (row && !kept && wide.matches && place !== pointer) soon = setTimeout(light, 120, row);  // nor one that scrolls below a mouse at rest
    pointer = place;
  });
  document.addEventListener("focusin", event => { const row = rowOf(event); if (row && !kept) light(row); });
  document.addEventListener("click", event => {
    const row = rowOf(event);
    if (!row || event.target.closest(".more, a:not(.mark)") || String(getSelection())) return;
    event.preventDefault();
    if (before) { before = null; search.value = ""; find(); }  // found: the search is over, and the page stays where it is
    if (wide.matches && kept && row === current) letGo(); else choose(row);
  });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = rowOf(event), by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (event.key === "Escape") {
      if (search.value) { search.value = ""; find(); search.blur(); } else close();
    }
    else if (event.target.closest("input, select, summary, #content")) return;
    else if (by) { event.preventDefault(); walk(by); }
    else if (event.key === "Enter" && (row || !open) && !event.target.closest("a, button")) { event.preventDefault(); choose(row || current); }
    else if (event.key === "/") { event.preventDefault(); search.focus({ preventScroll: true }); }
    else if ("123".includes(event.key)) all(".columns button")[event.key - 1].click();
  });

  for (const button of all(".columns button")) button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    if (pressed && all('.columns [aria-pressed="true"]').length === 1) return;
    button.setAttribute("aria-pressed", !pressed);
    const off = all('.columns [aria-pressed="false"]').map(b => b.dataset.column);
    stay(() => {
      root.dataset.hide = off.join(" ");
      for (const row of rows) row.hidden = ![...row.querySelectorAll(".cell:not(.none)")].some(cell => !off.includes(cell.dataset.of));
    });
  });
  const draw = () => { if (heat.value) root.dataset.heat = heat.value; else delete root.dataset.heat; };
  heat.addEventListener("change", () => stay(draw));
  at("tier").addEventListener("change", event => {
    root.dataset.tier = event.target.value;
    heat.value = "difference";  // where it shows
    stay(draw);
  });
  at("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  at("previous").addEventListener("click", () => walk(-1));
  at("next").addEventListener("click", () => walk(1));
  at("taller").addEventListener("click", event => {
    event.currentTarget.setAttribute("aria-pressed", dock.classList.toggle("tall"));
    place();
  });
  at("close").addEventListener("click", () => { close(); if (current) current.focus({ preventScroll: true }); });

  const plain = text => text.toLowerCase().replace(/\s+/g, " "), places = [...rows, ...all(".text dl > div, .text > section, [aria-labelledby=measured]")];
  let texts = null;
  function find() {
    const words = plain(search.value.trim()).split(" ").filter(Boolean);
    if (words.length && !before) before = [scrollY, current, kept, open];
    texts = texts || places.map(place => plain(place.id + " " + place.textContent));
    const hits = texts.map((text, k) => words.every(word => text.includes(word)) && !places[k].hidden);
    matches = words.length ? places.filter((place, k) => hits[k]) : [];
    places.forEach((place, k) => place.classList.toggle("dim", matches.length > 0 && !hits[k]));
    found.textContent = words.length ? "nothing" : "";
    go(0);
    if (words.length || !before) return;
    const [y, row, wasKept, wasOpen] = before;  // as it was
    before = null;
    letGo();
    if (row) (wasKept ? keep : light)(row);
    open = wasOpen;
    place();
    scrollTo(0, y);
  }
  function go(to) {
    for (const place of places) place.classList.remove("match");
    mark([]);
    if (!matches.length) return;
    hit = (to + matches.length) % matches.length;
    const place = matches[hit], row = rows.includes(place);
    open = true;  // the words may stand in the panel
    found.textContent = `${hit + 1} of ${matches.length}`;
    if (row) (kept ? keep : light)(place); else place.classList.add("match");
    const words = plain(search.value.trim()).split(" ");
    for (const code of place.querySelectorAll("details:not(.more)")) code.open = words.every(word => plain(code.textContent).includes(word));
    mark(words, place, content);
    place.scrollIntoView({ block: place.offsetHeight < innerHeight / 2 ? "center" : "start" });
  }
  function mark(words, ...inside) {  // where the words stand
    if (!CSS.highlights) return;
    const ranges = [];
    for (const of of inside) for (let walker = document.createTreeWalker(of, NodeFilter.SHOW_TEXT), node; (node = walker.nextNode());)
      for (const word of words) for (let k = -1; (k = node.data.toLowerCase().indexOf(word, k + 1)) >= 0;) {
        const range = new Range();
        range.setStart(node, k);
        range.setEnd(node, k + word.length);
        ranges.push(range);
      }
    CSS.highlights.set("found", new Highlight(...ranges));
  }
  search.addEventListener("input", find);
  search.addEventListener("keydown", event => {
    const by = { Enter: event.shiftKey ? -1 : 1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by && matches.length) { event.preventDefault(); go(hit + by); }
  });

  // the number below the pointer, and those that it came from
  function pixels(item) {
    const key = root.dataset.image || "1";
    if (sheets[key]) return sheets[key].data ? sheets[key] : null;
    const image = sheets[key] = new Image();
    image.onload = () => {
      const [width, height] = [image.width, image.height], context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
      context.drawImage(image, 0, 0);
      sheets[key] = context.getImageData(0, 0, width, height);
    };
    image.src = getComputedStyle(item).backgroundImage.slice(5, -2);
    return null;
  }
  function number(of, map, k, row, column) {
    const [height, width] = map.size, [x, y] = map.at[k], at = 4 * ((y + row) * of.width + x + column);
    if (row < 0 || column < 0 || row >= height || column >= width) return 0;  // padded
    const red = of.data[at], blue = of.data[at + 2], root = red < blue ? (red - 255) / 222 : (255 - blue) / 255;
    return Math.sign(root) * root * root * map.scale;
  }
  const written = x => (Math.abs(x) < 5e-13 ? "0" : Math.abs(x) < .001 ? x.toExponential(1) : x.toFixed(3)).padStart(9);
  const square = (values, side) => "<pre>" + values.map((x, k) => written(x) + ((k + 1) % side ? "" : "\n")).join("") + "</pre>";
  function tell(item, event) {
    const of = pixels(item), map = maps[item.dataset.map], k = [...item.parentElement.children].indexOf(item), box = item.getBoundingClientRect();
    if (!of) return;
    const [row, column] = [(event.clientY - box.top) / box.height * map.size[0], (event.clientX - box.left) / box.width * map.size[1]].map(Math.floor);
    let text = `<b>${item.dataset.map}</b>, map ${map.channels[k] + 1} of ${map.of}, row ${row}, column ${column}: <b>${written(number(of, map, k, row, column)).trim()}</b>`;
    if (map.from) {
      const from = maps[map.from], shown = map.kernel || !from.at[k] ? 0 : k, more = (from.size[0] - map.size[0]) / 2;
      const start = place => map.side === 3 ? place + more - 1 : Math.floor(place * from.size[0] / map.size[0]);
      const values = [...Array(map.side ** 2).keys()].map(n => number(of, from, shown, start(row) + Math.floor(n / map.side), start(column) + n % map.side));
      text += `<br>from ${map.from}, map ${from.channels[shown] + 1}${square(values, map.side)}`;
      if (map.kernel) {
        const sum = values.reduce((sum, x, n) => sum + x * map.kernel[k][n], 0);
        text += `times its kernel${square(map.kernel[k], 3)}${from.of > 1 ? `is ${written(sum).trim()}, of one of ${from.of} maps that are added up` : "added up"}`;
      }
    }
    tip.innerHTML = text;
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 10) + "px";
  }
  document.addEventListener("mousemove", event => { if (event.target.matches && event.target.matches(".m")) tell(event.target, event); else tip.hidden = true; });
  if (at("image")) at("image").addEventListener("change", event => { root.dataset.image = event.target.value; });

  function follow() {
    const row = rows.find(row => row.id === decodeURIComponent(location.hash.slice(1)));
    if (!row && !location.hash && wide.matches) light(at("model/double_conv/bn"));  // one is open at first
    if (!row) return;
    for (const more of row.querySelectorAll(".more")) more.open = false;
    choose(row);
    row.scrollIntoView({ block: wide.matches ? "center" : "start" });
    row.focus({ preventScroll: true });
    place();
  }
  const narrow = matchMedia("(max-width: 1100px)"), map = document.querySelector("nav details"), fold = () => { map.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  draw();
  addEventListener("hashchange", follow);
  addEventListener("scroll", () => { tip.hidden = true; place(); }, { passive: true });
  addEventListener("resize", place);
  addEventListener("beforeprint", () => { for (const more of all(".noted > .more")) more.open = true; });
  place();
  follow();
})();
