"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const space = $("ns").namespaceURI;
  const scores = data.images.flatMap((image) => image.detections.map((row) => row[1]));
  const low = Math.min(0, ...scores), high = Math.max(1, ...scores);

  function svg(name, attributes, parent) {
    const element = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  }

  function chip(parent, type, name, value, text, dot, checked) {
    const label = document.createElement("label");
    label.className = "chip";
    const input = document.createElement("input");
    Object.assign(input, { type, name, value, checked });
    const span = document.createElement("span");
    span.className = "name";
    if (dot) {
      const mark = document.createElement("span");
      mark.className = "dot k-" + dot;
      span.append(mark);
    }
    span.append(text);
    label.append(input, span);
    parent.append(label);
    input.addEventListener("change", draw);
    return input;
  }

  const kinds = Object.keys(data.kinds);
  const first = kinds.find((kind) => kind !== "right" && data.kinds[kind].length) || "right";
  for (const kind of kinds)
    chip($("galleries"), "radio", "gallery", kind, `${kind} (${data.kinds[kind].length})`, kind, kind === first);
  const layers = ["objects", ...kinds.filter((kind) => kind !== "missed"), "ignored"].map((kind) =>
    chip($("layers"), "checkbox", "layer", kind, kind, kind, kind !== "ignored"));
  const filters = data.classes.map((name, index) => chip($("classfilter"), "checkbox", "class", index, name, "", true));
  const slider = $("score");
  // steps of a slider round the score: down, so that what the score lets through stays
  slider.value = Math.floor(((data.score - low) / (high - low)) * 100);
  slider.addEventListener("input", draw);
  for (const [id, value] of [["all", true], ["none", false]])
    $(id).addEventListener("click", () => {
      for (const input of filters) input.checked = value;
      draw();
    });

  const least = () => low + (slider.value / 100) * (high - low);
  const gallery = () => document.querySelector("input[name=gallery]:checked").value;

  // boxes of an image that are switched on; what the image is about always is
  function paint(image, focus, kind, named) {
    const { width, height } = image;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    if (image.image) svg("image", { href: image.image, width, height, preserveAspectRatio: "none" }, root);
    else svg("rect", { class: "blank", width, height }, root);
    const on = new Set(layers.filter((input) => input.checked).map((input) => input.value));
    const shown = new Set(filters.filter((input) => input.checked).map((input) => Number(input.value)));
    const size = Math.max(width, height) / (named ? 45 : 22);
    function box(at, style, text, thick) {
      const place = { x: at[0], y: at[1], width: Math.max(0, at[2] - at[0]), height: Math.max(0, at[3] - at[1]) };
      const more = thick ? " thick" : "";
      svg("rect", { ...place, class: "halo" + more }, root);
      svg("rect", { ...place, class: "box " + style + more }, root);
      if (!text) return;
      const label = svg("text", { class: "label", "font-size": size }, root);
      label.textContent = text;
      label.setAttribute("x", Math.max(2, Math.min(at[0] + size / 4, width - text.length * size * 0.6)));
      label.setAttribute("y", at[1] > size * 1.3 ? at[1] - size * 0.3 : at[1] + size);
    }
    image.objects.forEach(([label, status, ...at], index) => {
      const own = kind === "missed" && index === focus;
      if (!own && (!on.has("objects") || !shown.has(label) || (status === 3 && !on.has("ignored")))) return;
      const text = own || named ? data.classes[label] + (own ? " missed" : "") : "";
      box(at, "object s" + status, text, own);
    });
    // the best on top, and above all what the image is about
    const order = image.detections.map((_, index) => index).reverse();
    if (kind !== "missed") order.push(...order.splice(order.indexOf(focus), 1));
    for (const index of order) {
      const [label, score, state, ...at] = image.detections[index];
      const own = kind !== "missed" && index === focus;
      const hidden = !on.has(data.states[state]) || !shown.has(label) || score < least();
      if (hidden && !own) continue;
      box(at.slice(0, 4), "d" + state, own || named ? `${data.classes[label]} ${score.toFixed(2)}` : "", own);
    }
    return root;
  }

  function about(image, focus, kind) {
    if (kind === "missed") return [`${data.classes[image.objects[focus][0]]}, missed`, image.id];
    const row = image.detections[focus];
    return [`${data.classes[row[0]]} ${row[1].toFixed(3)}, ${kind}`, `${image.id}, best IoU with its class ${row[7].toFixed(2)}`];
  }

  // an image of the gallery is shown while the class of what it is about is
  function visible(kind) {
    return data.kinds[kind].filter(([number, focus]) => {
      const image = data.images[number];
      const row = (kind === "missed" ? image.objects : image.detections)[focus];
      return filters[row[0]].checked;
    });
  }

  let current = 0;
  function draw() {
    const kind = gallery(), entries = visible(kind);
    $("least").textContent = least().toFixed(2);
    $("classcount").textContent = `(${filters.filter((input) => input.checked).length} of ${filters.length})`;
    $("kindtext").textContent = `${entries.length} images of kind ${kind}: ${data.meaning[kind]}.`;
    for (const line of document.querySelectorAll(".curve"))
      line.toggleAttribute("hidden", !filters[Number(line.dataset.class)].checked);
    $("cards").replaceChildren(...entries.map(([number, focus], index) => {
      const image = data.images[number];
      const [title, more] = about(image, focus, kind);
      const card = document.createElement("button");
      card.type = "button";
      card.className = "card";
      const text = document.createElement("span");
      text.className = "text";
      const small = document.createElement("small");
      small.textContent = more;
      text.append(title, small);
      card.append(paint(image, focus, kind, false), text);
      card.addEventListener("click", () => { enlarge(index); $("large").showModal(); });
      return card;
    }));
    if ($("large").open) enlarge(current);
  }

  function enlarge(index) {
    const kind = gallery(), entries = visible(kind);
    if (!entries.length) return;
    current = (index + entries.length) % entries.length;
    const [number, focus] = entries[current];
    const image = data.images[number];
    $("stage").replaceChildren(paint(image, focus, kind, true));
    $("caption").textContent = `${current + 1} of ${entries.length}: ${about(image, focus, kind).join(", ")}`;
  }
  $("previous").addEventListener("click", () => enlarge(current - 1));
  $("next").addEventListener("click", () => enlarge(current + 1));
  $("close").addEventListener("click", () => $("large").close());
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
  $("large").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); enlarge(current + step); }
  });

  draw();
})();
