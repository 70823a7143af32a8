"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const space = $("ns").namespaceURI;

  function make(name, attributes, ...content) {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(...content);
    return element;
  }

  function svg(name, attributes, parent) {
    const element = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  }

  function chip(parent, name, value, text, dot, checked) {
    const input = make("input", { type: "checkbox", name, value, checked });
    const mark = dot ? [make("span", { className: "dot k-" + dot })] : [];
    parent.append(make("label", { className: "chip" }, input, make("span", { className: "name" }, ...mark, text)));
    input.addEventListener("change", draw);
    return input;
  }

  const layers = ["objects", ...data.kinds].map((kind) => chip($("layers"), "layer", kind, kind, kind, kind !== "ignored"));
  const filters = data.classes.map((name, index) => chip($("classfilter"), "class", index, name, "", true));
  data.levels.forEach(({ text }, index) => $("level").append(make("option", { value: index }, text)));
  $("level").addEventListener("change", draw);
  for (const [id, value] of [["all", true], ["none", false]])
    $(id).addEventListener("click", () => {
      for (const input of filters) input.checked = value;
      draw();
    });

  const on = (inputs) => new Set(inputs.filter((input) => input.checked).map((input) => input.value));
  // the objects alone come before what each detector found
  const columns = [null, ...data.runs.map((_, run) => run)];

  // which of a detector's boxes are switched on
  function shown(image, run) {
    const kinds = on(layers), classes = on(filters), least = data.levels[$("level").value].scores[run];
    return image.found[run].filter(([label, score, state]) =>
      kinds.has(data.states[state]) && classes.has(String(label)) && (least === null || score >= least));
  }

  function paint(image, run, named) {
    const { width, height } = image;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    if (image.image) svg("image", { href: image.image, width, height, preserveAspectRatio: "none" }, root);
    else svg("rect", { class: "blank", width, height }, root);
    const size = Math.max(width, height) / 40;
    function box(at, style, text) {
      const place = { x: at[0], y: at[1], width: Math.max(0, at[2] - at[0]), height: Math.max(0, at[3] - at[1]) };
      svg("rect", { ...place, class: "halo" }, root);
      svg("rect", { ...place, class: "box " + style }, root);
      if (!named) return;
      const label = svg("text", { class: "label", "font-size": size }, root);
      label.textContent = text;
      label.setAttribute("x", Math.max(2, Math.min(at[0] + size / 4, width - text.length * size * 0.6)));
      label.setAttribute("y", at[1] > size * 1.3 ? at[1] - size * 0.3 : at[1] + size);
    }
    const kinds = on(layers), classes = on(filters);
    for (const [label, status, ...at] of image.objects)
      if ((run === null || kinds.has("objects")) && classes.has(String(label)) && (status !== 3 || kinds.has("ignored")))
        box(at, "object s" + status, run === null ? data.classes[label] : "");
    if (run !== null)
      for (const [label, score, state, ...at] of shown(image, run).reverse())
        box(at, "d" + state, `${data.classes[label]} ${score.toFixed(2)}`);
    return root;
  }

  function about(image, run) {
    if (run === null) return ["objects", `${image.objects.length} annotated`];
    const found = shown(image, run), right = found.filter((row) => data.states[row[2]] === "right").length;
    const wrong = found.filter((row) => !["right", "ignored"].includes(data.states[row[2]])).length;
    return [data.runs[run].name, `${right} right, ${wrong} wrong`];
  }

  let current = [0, 0];
  function draw() {
    $("classcount").textContent = `(${filters.filter((input) => input.checked).length} of ${filters.length})`;
    $("images").replaceChildren(...data.images.flatMap((image, number) => {
      const cards = columns.map((run, place) => {
        const [title, more] = about(image, run);
        const dot = run === null ? [] : [make("span", { className: "dot run" })];
        if (dot.length) dot[0].style.setProperty("--shade", data.runs[run].shade);
        const text = make("span", { className: "text" }, ...dot, title, make("small", {}, more));
        const card = make("button", { type: "button", className: "card" }, paint(image, run, false), text);
        card.addEventListener("click", () => { enlarge(number, place); $("large").showModal(); });
        return card;
      });
      return [make("h3", { className: "image" }, image.id), make("div", { className: "group" }, ...cards)];
    }));
    if ($("large").open) enlarge(...current);
  }

  function enlarge(number, place) {
    const count = columns.length, total = data.images.length * count;
    const at = (number * count + place + total) % total;
    current = [Math.floor(at / count), at % count];
    const image = data.images[current[0]], run = columns[current[1]];
    $("stage").replaceChildren(paint(image, run, true));
    $("caption").textContent = `${image.id}, image ${current[0] + 1} of ${data.images.length}: ${about(image, run).join(", ")}`;
  }
  const step = (images, places) => enlarge(current[0] + images, current[1] + places);
  $("previous").addEventListener("click", () => step(0, -1));
  $("next").addEventListener("click", () => step(0, 1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
  $("large").addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (move) { event.preventDefault(); step(...move); }
  });

  $("curve").addEventListener("change", () => {
    for (const line of document.querySelectorAll(".curve"))
      line.toggleAttribute("hidden", line.dataset.class !== $("curve").value);
  });
  draw();
})();
