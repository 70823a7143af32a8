"use strict";
(() => {
  const layers = layersOf(["objects", ...data.kinds], draw);
  const filters = classFilters(draw);
  data.levels.forEach(({ text }, index) => $("level").append(make("option", { value: index }, text)));
  $("level").addEventListener("change", draw);

  // the objects alone come before the detections of each detector
  const columns = [null, ...data.runs.map((_, run) => run)];

  // which of a detector's boxes are switched on
  function shown(image, run) {
    const kinds = checked(layers), classes = checked(filters);
    const threshold = data.levels[$("level").value].scores[run];
    return image.detections[run].filter(([label, score, state]) =>
      kinds.has(data.states[state]) && classes.has(String(label)) && (threshold === null || score >= threshold));
  }

  function paint(image, run, named) {
    const root = canvasOf(image), size = Math.max(image.width, image.height) / (innerWidth < 640 ? 28 : 40);
    const kinds = checked(layers), classes = checked(filters);
    for (const [label, status, ...box] of image.objects)
      if ((run === null || kinds.has("objects")) && classes.has(String(label)) && (status !== 3 || kinds.has("ignored")))
        addBox(root, box, "object s" + status, named && run === null ? data.classes[label] : "", size);
    if (run !== null)
      for (const [label, score, state, ...box] of shown(image, run).reverse())
        addBox(root, box, "d" + state, named ? `${data.classes[label]} ${score.toFixed(2)}` : "", size);
    return addNames(root);
  }

  function about(image, run) {
    if (run === null) return ["objects", `${image.objects.length} annotated`];
    const states = shown(image, run).map(([, , state]) => data.states[state]);
    const right = states.filter((state) => state === "right").length;
    const wrong = states.filter((state) => !["right", "ignored"].includes(state)).length;
    return [data.runs[run].name, `${right} right, ${wrong} wrong`];
  }

  let current = [0, 0];
  function draw() {
    $("classcount").textContent = `(${checked(filters).size} of ${filters.length})`;
    $("groups").replaceChildren(...data.images.flatMap((image, number) => {
      const cards = columns.map((run, column) => {
        const [title, more] = about(image, run);
        const dot = run === null ? [] : [make("span", { className: "dot run" })];
        if (dot.length) dot[0].style.setProperty("--shade", data.runs[run].shade);
        return cardOf(paint(image, run, false), () => enlarge(number, column), ...dot, title, make("small", {}, more));
      });
      return [make("h3", { className: "image" }, image.id), make("div", { className: "group" }, ...cards)];
    }));
    if ($("large").open) enlarge(...current);
  }

  // past the last detector of an image comes the next image
  function enlarge(number, column) {
    const count = columns.length, total = data.images.length * count;
    const at = (number * count + column + total) % total;
    current = [Math.floor(at / count), at % count];
    const image = data.images[current[0]], run = columns[current[1]];
    $("stage").replaceChildren(paint(image, run, true));
    $("caption").textContent = `${image.id}, image ${current[0] + 1} of ${data.images.length}: ${about(image, run).join(", ")}`;
  }
  const move = (images, detectors) => () => enlarge(current[0] + images, current[1] + detectors);
  largeImage({ ArrowLeft: move(0, -1), ArrowRight: move(0, 1), ArrowUp: move(-1, 0), ArrowDown: move(1, 0) });

  $("curve").addEventListener("change", () => {
    for (const line of document.querySelectorAll(".curve"))
      line.toggleAttribute("hidden", line.dataset.class !== $("curve").value);
  });
  draw();
})();
