"use strict";
// The U-Net of this page once more, in plain JavaScript: canonical weights, "same" padding, ELU, one class, in inference.
// A map is {data: Float32Array, [h, w, c] as in TensorFlow, h, w, c}; study/maps.py packs the weights and the first image.
(() => {
  const at = id => document.getElementById(id), told = JSON.parse(at("network").textContent), weights = {}, shapes = {};
  const half = n => {  // of a float16 in 16 bits: sign, 5 of exponent, 10 of fraction
    const exponent = n >> 10 & 31, fraction = (n & 1023) / 1024;
    return (n >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };
  for (const [name, [shape, text]] of Object.entries(told.weights)) {
    const bytes = atob(text);
    shapes[name] = shape;
    weights[name] = Float32Array.from({ length: bytes.length / 2 }, (_, k) => half(bytes.charCodeAt(2 * k) + 256 * bytes.charCodeAt(2 * k + 1)));
  }

  const zeros = (h, w, c) => ({ data: new Float32Array(h * w * c), h, w, c });
  function conv(x, name) {
    const [side, , , out] = shapes[`${name}/kernel`], kernel = weights[`${name}/kernel`], bias = weights[`${name}/bias`];
    const y = zeros(x.h, x.w, out), sum = new Float64Array(out), r = side >> 1;
    for (let row = 0; row < x.h; row++) for (let column = 0; column < x.w; column++) {
      sum.set(bias);
      for (let i = 0; i < side; i++) for (let j = 0; j < side; j++) {
        const u = row + i - r, v = column + j - r;
        if (u < 0 || v < 0 || u >= x.h || v >= x.w) continue;  // padded with zeros
        for (let a = 0, from = (u * x.w + v) * x.c, k = (i * side + j) * x.c * out; a < x.c; a++, from++)
          for (let b = 0; b < out; b++, k++) sum[b] += x.data[from] * kernel[k];
      }
      y.data.set(sum, (row * x.w + column) * out);
    }
    return y;
  }
  const elu = x => { x.data.forEach((n, k) => { if (n < 0) x.data[k] = Math.expm1(n); }); return x; };
  const doubleConv = (x, block) => elu(conv(elu(conv(x, `${block}/conv1`)), `${block}/conv2`));
  function maxPool(x) {
    const y = zeros(x.h / 2, x.w / 2, x.c);
    y.data.fill(-Infinity);
    for (let row = 0; row < x.h; row++) for (let column = 0; column < x.w; column++) for (let c = 0; c < x.c; c++) {
      const to = ((row >> 1) * y.w + (column >> 1)) * x.c + c;
      y.data[to] = Math.max(y.data[to], x.data[(row * x.w + column) * x.c + c]);
    }
    return y;
  }
  function deconv(x, name) {  // every pixel becomes 2x2 of them; kernel [2, 2, out, in]
    const out = shapes[`${name}/kernel`][2], kernel = weights[`${name}/kernel`], bias = weights[`${name}/bias`], y = zeros(2 * x.h, 2 * x.w, out);
    for (let row = 0; row < y.h; row++) for (let column = 0; column < y.w; column++) for (let b = 0; b < out; b++) {
      let sum = bias[b];
      const from = ((row >> 1) * x.w + (column >> 1)) * x.c, k = ((row % 2 * 2 + column % 2) * out + b) * x.c;
      for (let a = 0; a < x.c; a++) sum += x.data[from + a] * kernel[k + a];
      y.data[(row * y.w + column) * out + b] = sum;
    }
    return y;
  }
  function concat(skip, x) {
    const y = zeros(x.h, x.w, skip.c + x.c);
    for (let n = 0; n < x.h * x.w; n++) {
      y.data.set(skip.data.subarray(n * skip.c, (n + 1) * skip.c), n * y.c);
      y.data.set(x.data.subarray(n * x.c, (n + 1) * x.c), n * y.c + skip.c);
    }
    return y;
  }
  function forward(x) {  // -> [[name, map]]: after each block of the U, and at last the probability
    const seen = [], skips = [], see = (name, x) => { seen.push([name, x]); return x; };
    for (let i = 0; i < told.depth; i++) {
      skips.push(see(`down${i}`, doubleConv(x, `down${i}`)));
      x = maxPool(skips[i]);
    }
    x = see(`down${told.depth}`, doubleConv(x, `down${told.depth}`));
    for (let i = told.depth - 1; i >= 0; i--) x = see(`up${i}`, doubleConv(concat(skips[i], deconv(x, `up${i}/deconv`)), `up${i}`));
    const p = see("head", conv(x, "head"));
    seen.push(["probability", { ...p, data: p.data.map(logit => 1 / (1 + Math.exp(-logit))) }]);
    return seen;
  }

  // what is drawn or dropped on the canvas goes through it
  const canvas = at("live-image"), pen = canvas.getContext("2d", { willReadFrequently: true }), side = canvas.width, SHOWN = 4;
  function paint(target, map, color) {
    Object.assign(target, { width: map.w, height: map.h });
    const picture = target.getContext("2d").createImageData(map.w, map.h);
    for (let n = 0; n < map.w * map.h; n++) picture.data.set([...color(n), 255], 4 * n);
    target.getContext("2d").putImageData(picture, 0, 0);
  }
  const mix = (end, share) => end.map(of => 255 + share * (of - 255));
  function signed(map, c) {  // as in the rows above: white is 0, orange above it, blue below
    let most = 1e-9;
    for (let n = c; n < map.data.length; n += map.c) most = Math.max(most, Math.abs(map.data[n]));
    return n => { const x = map.data[n * map.c + c] / most; return mix(x < 0 ? [33, 102, 172] : [178, 84, 0], Math.sqrt(Math.abs(x))); };
  }
  function run() {
    const began = performance.now(), pixels = pen.getImageData(0, 0, side, side).data, image = zeros(side, side, 1);
    for (let n = 0; n < side * side; n++) image.data[n] = Math.floor((19595 * pixels[4 * n] + 38470 * pixels[4 * n + 1] + 7471 * pixels[4 * n + 2] + 32768) / 65536) / 255;
    const seen = forward(image), p = globalThis.probability = seen.at(-1)[1].data;  // a name, for the console
    paint(at("live-mask"), seen.at(-1)[1], n => p[n] < .5 ? Array(3).fill(image.data[n] * 255) : [255 * image.data[n] / 2 + 115, 255 * image.data[n] / 2 + 80, 255 * image.data[n] / 2]);
    const strip = at("live-maps");
    strip.replaceChildren(...seen.map(([name, map]) => {
      const place = Object.assign(document.createElement("span"), { className: "at" });
      for (let c = 0; c < Math.min(SHOWN, map.c); c++) paint(place.appendChild(document.createElement("canvas")), map, signed(map, c));
      place.append(Object.assign(document.createElement("small"), { textContent: `${name} ${map.h}x${map.w}x${map.c}` }));
      return place;
    }));
    const share = p.reduce((sum, x) => sum + (x >= .5), 0) / p.length;
    at("live-told").textContent = `${(100 * share).toFixed(1)} % of the pixels are foreground; ${Math.round(performance.now() - began)} ms in this browser`;
  }
  function show(source) {  // a picture: its middle square
    const picture = new Image();
    picture.onload = () => {
      const [w, h] = [picture.width, picture.height], of = Math.min(w, h);
      pen.drawImage(picture, (w - of) / 2, (h - of) / 2, of, of, 0, 0, side, side);
      run();
    };
    picture.onerror = () => { at("live-told").textContent = "this browser cannot read that as an image: take a PNG or a JPEG"; };
    picture.src = source;
  }
  const read = file => { if (file) show(URL.createObjectURL(file)); };
  const example = () => show("data:image/png;base64," + told.image);
  at("live-file").addEventListener("change", event => read(event.target.files[0]));
  canvas.addEventListener("dragover", event => event.preventDefault());
  canvas.addEventListener("drop", event => { event.preventDefault(); read(event.dataTransfer.files[0]); });
  at("live-example").addEventListener("click", example);
  at("live-clear").addEventListener("click", () => { pen.fillStyle = "#404040"; pen.fillRect(0, 0, side, side); run(); });
  let down = false;
  function dab(event) {
    const box = canvas.getBoundingClientRect();
    pen.fillStyle = "#b0b0b0";
    pen.beginPath();
    pen.arc((event.clientX - box.left) / box.width * side, (event.clientY - box.top) / box.height * side, 8, 0, 7);
    pen.fill();
  }
  canvas.addEventListener("pointerdown", event => { down = true; canvas.setPointerCapture(event.pointerId); dab(event); });
  canvas.addEventListener("pointermove", event => { if (down) dab(event); });
  canvas.addEventListener("pointerup", () => { down = false; run(); });
  new IntersectionObserver(([entry], watch) => { if (entry.isIntersecting) { watch.disconnect(); example(); } }).observe(canvas);  // nothing is computed for who never looks
})();
