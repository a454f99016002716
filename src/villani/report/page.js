// Draws the pictures, moves Ψ with the sliders, explains words, and hands the numbers out.
(() => {
  const get = id => document.getElementById(id);
  const {figures, point, records} = JSON.parse(get("data").textContent);
  const title = document.title;

  const box = name => get("figure-" + name);
  const heading = name => box(name).closest("figure")?.querySelector("h3")?.textContent || "Ψ and its five parts";
  const draw = (name, most) => { if (box(name)?.clientWidth) Plot.draw(box(name), figures[name], heading(name), most); };
  if (point) sliders();
  const seen = new ResizeObserver(entries => entries.forEach(one => draw(one.target.id.replace("figure-", ""))));
  const drawAll = most => Object.keys(figures).forEach(name => draw(name, most));
  drawAll();
  Object.keys(figures).filter(box).forEach(name => seen.observe(box(name)));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach(one => { one.open = true; });
    drawAll(640);  // pixels across a sheet of paper
  });
  addEventListener("afterprint", () => drawAll());

  // The first time a word of the glossary stands on the page, it is explained where the pointer rests.
  const words = new Map([...document.querySelectorAll("#words dt")].map(one => [one.textContent, one.nextElementSibling.textContent]));
  const spots = document.querySelectorAll(".headline, .findings p, th, .note, figcaption");
  for (const [word, meaning] of words) {
    const pattern = new RegExp(`(?<![\\p{L}\\p{N}_'’])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\p{L}\\p{N}_*])`, "u");
    explain: for (const spot of spots) {
      const texts = document.createTreeWalker(spot, NodeFilter.SHOW_TEXT);
      while (texts.nextNode()) {
        const text = texts.currentNode, at = text.data.search(pattern);
        if (at < 0 || text.parentElement.closest("abbr, code")) continue;
        const abbr = document.createElement("abbr"), rest = text.splitText(at);
        abbr.title = meaning;
        rest.splitText(word.length);
        rest.replaceWith(abbr);
        abbr.append(rest);
        break explain;
      }
    }
  }

  // Downloads: the records, and all their numbers a line each.
  async function unpacked() {
    const bytes = Uint8Array.from(atob(records), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }
  function save(text, name, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type}));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }
  const flat = (value, path) => value !== null && typeof value === "object"
    ? Object.entries(value).flatMap(([key, one]) => flat(one, path ? `${path}.${key}` : key)) : [[path, value ?? ""]];
  const cell = value => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  const name = title.replace(/[^A-Za-z0-9.]+/g, "-").replace(/^-|-$/g, "");
  get("json")?.addEventListener("click", async () => save(await unpacked(), `${name}.json`, "application/json"));
  get("csv")?.addEventListener("click", async () => {
    const rows = [["name", "value"], ...flat(JSON.parse(await unpacked()), "")];
    save(rows.map(row => row.map(cell).join()).join("\n") + "\n", `${name}.csv`, "text/csv");
  });

  function sliders() {
    const state = {decay: point.weightDecay, temperature: point.temperature};
    const reach = {decay: [-5, 1], temperature: [-7, 1]};
    const allowed = (name, value) => Number.isFinite(value) && (value > 0 || (value === 0 && name === "decay"));
    const hash = new URLSearchParams(location.hash.slice(1));
    for (const name of ["decay", "temperature"]) {
      const [low, high] = reach[name], asked = Math.log10(state[name]);
      const slider = get(name + "-slider");
      slider.min = Number.isFinite(asked) ? Math.min(low, Math.floor(asked) - 1) : low;
      slider.max = Number.isFinite(asked) ? Math.max(high, Math.ceil(asked) + 1) : high;
      if (hash.get(name) && allowed(name, Number(hash.get(name)))) state[name] = Number(hash.get(name));
      // The far left of λ is λ = 0: a logarithmic scale has no place for it.
      slider.addEventListener("input", () => {
        const bottom = name === "decay" && Number(slider.value) <= Number(slider.min);
        state[name] = bottom ? 0 : Number((10 ** slider.value).toPrecision(3));
        show();
      });
      get(name).addEventListener("input", () => {
        const typed = get(name).valueAsNumber;
        if (allowed(name, typed)) { state[name] = typed; show(name); }
      });
    }
    get("reset").addEventListener("click", () => {
      state.decay = point.weightDecay;
      state.temperature = point.temperature;
      show();
    });
    // `typing`: the field being typed in, which must not be rewritten under the reader's fingers.
    function show(typing) {
      for (const name of ["decay", "temperature"]) {
        if (name !== typing) get(name).value = state[name];
        const slider = get(name + "-slider");
        slider.value = state[name] > 0 ? Math.log10(state[name]) : slider.min;
        slider.setAttribute("aria-valuetext", `${name === "decay" ? "λ" : "s"} = ${formatNumber(state[name])}`);
      }
      const measured = state.decay === point.weightDecay && state.temperature === point.temperature;
      const place = measured ? location.pathname + location.search : `#decay=${state.decay}&temperature=${state.temperature}`;
      try { history.replaceState(null, "", place); } catch { /* a page that is shown inside another has no address */ }
      const rows = psiAt(point, state.decay, state.temperature);
      document.querySelectorAll("#live tbody tr").forEach((row, i) => {
        row.cells[1].textContent = formatUncertain(rows[i].value, rows[i].sem);
        row.cells[2].textContent = formatInterval(rows[i].low, rows[i].high);
      });
      get("live-sentence").textContent = sentence(rows[0], state);
      figures.parts.data = [mark(figures.parts.data[0], rows)];
      draw("parts");
    }
    show();
  }
  function sentence(psi, state) {
    const at = `At λ = ${formatNumber(state.decay)}, s = ${formatNumber(state.temperature)}: Ψ = `;
    const sign = psi.low > 0 ? "positive" : psi.high < 0 ? "negative" : psi.low <= 0 && psi.high >= 0
      ? "sign undecided" : "no interval from a single group";
    return `${at}${formatUncertain(psi.value, psi.sem)}, ${sign}.`;
  }
  function mark(trace, rows) {
    const array = rows.map(row => row.high - row.value || 0);
    const arrayminus = rows.map((row, i) => Math.min(array[i], 0.9 * Math.abs(row.value)));
    const color = rows.map(row => row.low > 0 ? "#3b82f6" : row.high < 0 ? "#e4572e" : "#8b93a1");
    return {
      ...trace,
      x: rows.map(row => Math.abs(row.value) || null),
      text: rows.map(row => formatUncertain(row.value, row.sem)),
      error_x: {...trace.error_x, array, arrayminus},
      marker: {...trace.marker, color},
    };
  }
})();
