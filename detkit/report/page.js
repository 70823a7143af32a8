"use strict";
(() => {
  const scores = data.images.flatMap((image) => image.detections.map((row) => row[1]));
  const low = Math.min(0, ...scores), high = Math.max(1, ...scores);

  const kinds = Object.keys(data.kinds);
  const first = kinds.find((kind) => kind !== "right" && data.kinds[kind].length) || "right";
  for (const kind of kinds)
    chip($("galleries"), { type: "radio", name: "gallery", value: kind, checked: kind === first },
      `${kind} (${data.kinds[kind].length})`, kind, draw);
  const layers = layersOf(["objects", ...kinds.filter((kind) => kind !== "missed"), "ignored"], draw);
  const filters = classFilters(draw);
  const slider = $("score");
  // steps of a slider round the score: down, so that what the score lets through stays
  slider.value = Math.floor(((data.score - low) / (high - low)) * 100);
  slider.addEventListener("input", draw);

  const threshold = () => low + (slider.value / 100) * (high - low);
  const gallery = () => document.querySelector("input[name=gallery]:checked").value;

  // an image with the boxes that are switched on; the one that it is shown for always is
  function paint(image, focus, kind, named) {
    const root = canvasOf(image), size = Math.max(image.width, image.height) / (!named ? 22 : innerWidth < 640 ? 28 : 45);
    const shown = checked(layers), classes = checked(filters);
    image.objects.forEach(([label, status, ...box], index) => {
      const focused = kind === "missed" && index === focus;
      const hidden = !shown.has("objects") || !classes.has(String(label)) || (status === 3 && !shown.has("ignored"));
      if (hidden && !focused) return;
      const text = focused || named ? data.classes[label] + (focused ? " missed" : "") : "";
      addBox(root, box, "object s" + status, text, size, focused);
    });
    // the best on top, and above all the one that the image is shown for
    const order = image.detections.map((_, index) => index).reverse();
    if (kind !== "missed") order.push(...order.splice(order.indexOf(focus), 1));
    for (const index of order) {
      const [label, score, state, ...box] = image.detections[index];
      const focused = kind !== "missed" && index === focus;
      const hidden = !shown.has(data.states[state]) || !classes.has(String(label)) || score < threshold();
      if (hidden && !focused) continue;
      const text = focused || named ? `${data.classes[label]} ${score.toFixed(2)}` : "";
      addBox(root, box, "d" + state, text, size, focused);
    }
    return addNames(root);
  }

  function about(image, focus, kind) {
    if (kind === "missed") return [`${data.classes[image.objects[focus][0]]}, missed`, image.id];
    const [label, score, , , , , , iou] = image.detections[focus];
    return [`${data.classes[label]} ${score.toFixed(3)}, ${kind}`, `${image.id}, best IoU with its class ${iou.toFixed(2)}`];
  }

  // an image of the gallery is shown while the class of what it is about is
  function visible(kind) {
    return data.kinds[kind].filter(([number, focus]) => {
      const image = data.images[number];
      const [label] = (kind === "missed" ? image.objects : image.detections)[focus];
      return filters[label].checked;
    });
  }

  let current = 0;
  function draw() {
    const kind = gallery(), entries = visible(kind);
    $("threshold").textContent = threshold().toFixed(2);
    $("classcount").textContent = `(${checked(filters).size} of ${filters.length})`;
    $("kindtext").textContent = `${entries.length} images of kind ${kind}: ${data.meaning[kind]}.`;
    for (const line of document.querySelectorAll(".curve"))
      line.toggleAttribute("hidden", !filters[Number(line.dataset.class)].checked);
    $("cards").replaceChildren(...entries.map(([number, focus], index) => {
      const image = data.images[number];
      const [title, more] = about(image, focus, kind);
      return cardOf(paint(image, focus, kind, false), () => enlarge(index), title, make("small", {}, more));
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
    const link = make("a", { href: `explained/${kind}.html` }, "How the detector came to it, step by step");
    $("how").replaceChildren(...(data.explained.includes(kind) && entries[current] === data.kinds[kind][0] ? [link] : []));
    $("caption").textContent = `${current + 1} of ${entries.length}: ${about(image, focus, kind).join(", ")}`;
  }
  largeImage({ ArrowLeft: () => enlarge(current - 1), ArrowRight: () => enlarge(current + 1) });

  draw();
})();
