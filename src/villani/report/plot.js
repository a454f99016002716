// Draws the part of plotly's figures that villani's pages have, as SVG: lines, marks, bars, and cells. `Plot.draw` is all.
const Plot = (() => {
  const TONES = {  // colours of report/colours.py → those of the page, which differ on light and dark
    "#3b82f6": "blue", "#e4572e": "red", "#8b93a1": "grey", "#7a8494": "grey", "#a78bfa": "violet", "#10b981": "green",
    "#f59e0b": "amber", "#ec4899": "pink", "#14b8a6": "teal", "#eab308": "gold",
  };
  const tone = colour => TONES[colour] ? `var(--${TONES[colour]})` : colour;
  const ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&", "&#36;": "$", "&#37;": "%"};
  const SUPERSCRIPTS = {"−": "⁻", "-": "⁻", ...Object.fromEntries([..."⁰¹²³⁴⁵⁶⁷⁸⁹"].map((c, i) => [i, c]))};
  const decoded = text => text.replace(/&(lt|gt|amp|#36|#37);/g, c => ENTITIES[c]);
  const raised = text => text.replace(/<sup>(.*?)<\/sup>/g, (_, power) => power.replace(/[−\d-]/g, c => SUPERSCRIPTS[c]));
  const bare = text => decoded(raised(String(text)).replace(/<extra>.*?<\/extra>/g, "").replace(/<br>/g, " ").replace(/<\/?b>/g, ""));
  const pen = document.createElement("canvas").getContext("2d");
  const wide = (text, size = 12) => {
    pen.font = `${String(text).includes("<b>") ? 650 : 400} ${size}px system-ui, sans-serif`;
    return pen.measureText(bare(text)).width;
  };

  function make(parent, name, attributes = {}) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(key, value);
    parent.append(node);
    return node;
  }

  // Text with <br> and <b>; made smaller, then cut in its middle, where it is wider than `room`.
  function write(parent, text, attributes, room = Infinity) {
    const size = attributes["font-size"] || 12, lines = raised(String(text)).split("<br>");
    const widest = Math.max(...lines.map(line => wide(line, size)));
    const own = Math.max(Math.min(size, size * room / widest), 10);
    const node = make(parent, "text", {...attributes, "font-size": own});
    lines.forEach((line, i) => {
      const row = make(node, "tspan", {x: attributes.x, dy: i ? "1.15em" : undefined});
      let left = [...bare(line)].length, width = wide(line, own);
      const keep = width > room ? Math.floor(left * room / width) - 1 : Infinity;
      if (keep < left) {
        const all = [...bare(line)], half = Math.max(Math.floor(keep / 2), 1);
        row.textContent = all.slice(0, half).join("") + "…" + all.slice(-half).join("");
        make(node, "title").textContent = bare(line);
        return;
      }
      for (const [, bold, plain] of line.matchAll(/<b>(.*?)<\/b>|([^<]+)/g)) {
        make(row, "tspan", bold === undefined ? {} : {"font-weight": 650}).textContent = decoded(bold ?? plain);
      }
    });
    return node;
  }

  // In two lines, parted next to the middle, where one is too long; what is bold is then not.
  function folded(text, room) {
    if (wide(text) <= room) return text;
    const plain = text.replace(/<\/?b>/g, ""), breaks = [...plain.matchAll(/[ .](?=\S)/g)].map(found => found.index + 1);
    const at = breaks.sort((a, b) => Math.abs(a - plain.length / 2) - Math.abs(b - plain.length / 2))[0];
    return at ? `${plain.slice(0, at)}<br>${plain.slice(at)}` : plain;
  }

  function formatted(value, specification) {
    if (typeof value !== "number") return bare(value ?? "");
    const [, digits, kind] = specification?.match(/^\.(\d+)([fg])$/) ?? [];
    return (kind === "f" ? value.toFixed(digits) : String(Number(value.toPrecision(digits ?? 6)))).replace("-", "−");
  }
  function hover(trace, i, point) {
    if (trace.hoverinfo === "skip") return "";
    const own = {...point, text: trace.text?.[i] ?? ""};
    const template = trace.hovertemplate ?? (trace.hoverinfo === "text" || trace.text ? "%{text}" : `${trace.name ?? ""} %{x}: %{y}`);
    return bare(template).replace(/%\{(\w+)(?::([^}]*))?\}/g, (_, name, how) => formatted(own[name], how));
  }

  const known = value => value !== null && value !== undefined && value !== "";
  // An axis: a number for each value, its range, its ticks.
  function axis(settings, values, ends, padded) {
    const words = settings.type === "category" || values.some(v => typeof v === "string");
    const log = settings.type === "log";
    const names = words ? [...new Set([...(settings.categoryarray ?? []), ...values.filter(known).map(String)])] : [];
    const at = value => words ? names.indexOf(String(value)) : log ? Math.log10(value) : Number(value);
    let range = settings.range?.slice();
    if (!range && words) range = [-0.5, Math.max(names.length, 1) - 0.5];
    if (!range) {
      const all = [...values, ...ends].filter(known).map(at).filter(Number.isFinite);
      if (settings.rangemode === "tozero" && !log) all.push(0);
      let [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
      if (low === high) { low -= log ? 0.5 : Math.abs(low) / 2 || 1; high += log ? 0.5 : Math.abs(high) / 2 || 1; }
      const pad = padded * (high - low), zero = settings.rangemode === "tozero" && !log;
      range = [zero && low === 0 ? 0 : low - pad, zero && high === 0 ? 0 : high + pad];
    }
    if (settings.autorange === "reversed") range.reverse();
    const whole = !words && values.filter(known).every(Number.isInteger);
    return {settings, words, log, names, at, range, ticks: ticks(settings, words, log, names, at, range, whole)};
  }
  function ticks(settings, words, log, names, at, range, whole) {
    const [low, high] = [Math.min(...range), Math.max(...range)];
    const inside = tick => tick.at >= low - 1e-9 && tick.at <= high + 1e-9;
    if (settings.tickvals) {
      return settings.tickvals.map((value, i) => ({at: at(value), text: String(settings.ticktext?.[i] ?? value)})).filter(inside);
    }
    if (words) return names.map((name, i) => ({at: i, text: name}));
    if (log && high - low >= 1) {
      const step = Math.ceil((high - low) / 6), made = [];
      for (let k = Math.ceil(low / step) * step; k <= high; k += step) made.push({at: k, text: power(k)});
      return made;
    }
    const [from, to] = log ? [10 ** low, 10 ** high] : [low, high];
    const rough = settings.dtick ?? (to - from) / ((settings.nticks ?? 6) - 1);
    const decade = 10 ** Math.floor(Math.log10(rough)), round = decade * [1, 2, 5, 10].find(n => n * decade >= rough * 0.999);
    const step = settings.dtick ?? (whole ? Math.max(round, 1) : round);
    const made = [];
    for (let k = Math.ceil(from / step - 1e-9); k * step <= to * (1 + 1e-9); k++) {
      const value = Number((k * step).toPrecision(12));
      made.push({at: log ? Math.log10(value) : value, text: short(value)});
    }
    return made.filter(inside);
  }
  const power = k => k >= -2 && k <= 3 ? String(Number((10 ** k).toPrecision(1))) : `10<sup>${String(k).replace("-", "−")}</sup>`;
  function short(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) {
      const [mantissa, exponent] = value.toExponential().split("e");
      return `${mantissa}·10<sup>${Number(exponent)}</sup>`.replaceAll("-", "−").replace(/^1·/, "").replace(/^−1·/, "−");
    }
    return String(value).replace("-", "−");
  }

  const SHAPES = {  // within a circle of radius 1
    circle: "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z", square: "M-.85-.85H.85V.85H-.85Z", diamond: "M0-1.2L1 0 0 1.2-1 0Z",
    cross: "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z", x: "M-1-.6L-.6-1 0-.4.6-1 1-.6.4 0 1 .6.6 1 0 .4-.6 1-1 .6-.4 0Z",
    "triangle-up": "M0-1.1L1 .8H-1Z", "triangle-down": "M0 1.1L1-.8H-1Z", "triangle-left": "M-1.1 0L.8-1V1Z",
    "triangle-right": "M1.1 0L-.8-1V1Z", bowtie: "M-1-.8L1 .8V-.8L-1 .8Z", "line-ns": "M0-1.3V1.3",
    star: "M0-1.2L.35-.4 1.15-.35.5.2.7 1 0 .5-.7 1-.5.2-1.15-.35-.35-.4Z",
    hexagon: "M0-1.1L.95-.55V.55L0 1.1-.95.55V-.55Z", pentagon: "M0-1.1L1.05-.35.65.9H-.65L-1.05-.35Z",
  };
  function mark(parent, x, y, symbol, size, colour, width) {
    const open = symbol.endsWith("-open"), shape = symbol.replace(/-open$/, ""), r = size / 2;
    make(parent, "path", {
      d: SHAPES[shape] ?? SHAPES.circle, transform: `translate(${x} ${y}) scale(${r})`,
      fill: open ? "none" : tone(colour), stroke: open ? tone(colour) : "none", "stroke-width": (width || 2) / r,
    });
  }
  const each = (value, i, otherwise) => (Array.isArray(value) ? value[i] : value) ?? otherwise;
  const DASHES = {dash: "7 5", dot: "2 4"};

  function draw(box, {data, layout}, title, most = Infinity) {
    const width = Math.min(Math.max(Math.round(box.clientWidth), 240), most);
    if (box.dataset.width === String(width) && box.figure === data) return;
    box.dataset.width = width;
    box.figure = data;
    box.replaceChildren();
    const svg = make(box, "svg", {role: "img", "aria-label": bare(title), class: "chart"});
    const cells = data.some(t => t.type === "heatmap"), bars = data.some(t => t.type === "bar");
    const ends = letter => data.flatMap(t => {
      const error = t[`error_${letter}`];
      return error?.array ? t[letter].flatMap((v, i) => known(v) && typeof v === "number" ? [v + error.array[i], v - (error.arrayminus ?? error.array)[i]] : []) : [];
    });
    const marked = letter => (layout.shapes ?? []).filter(s => s[`${letter}ref`] === letter).map(s => s[`${letter}0`]);
    const padded = cells ? 0 : 0.06;
    const x = axis(layout.xaxis, data.flatMap(t => t.x), [...ends("x"), ...(bars ? [0] : []), ...marked("x")], padded);
    const y = axis(layout.yaxis, data.flatMap(t => t.y), [...ends("y").filter(v => layout.yaxis.type !== "log" || v > 0), ...marked("y")], padded);

    // Room: names of rows stand beside the picture where they leave most of the width to it, and above their marks else.
    const labels = layout.yaxis.showticklabels === false ? [] : y.ticks;
    const widest = Math.max(0, ...labels.map(t => Math.max(...t.text.split("<br>").map(line => wide(line)))));
    const above = widest > 0.3 * width && !cells;
    const left = above ? 10 : Math.min(widest, 0.3 * width) + 12;
    const right = bars ? 52 : 16;
    const inner = width - left - right;
    const crowded = x.ticks.length * (Math.max(0, ...x.ticks.map(t => wide(t.text))) + 10) > inner * x.ticks.length / Math.max(x.ticks.length - 1, 1);
    const slanted = layout.xaxis.tickangle || (crowded && x.words);
    const longest = Math.max(0, ...x.ticks.map(t => wide(t.text)));
    const top = layout.yaxis.title?.text ? 30 : 14;
    const below = (slanted ? Math.min(longest, 130) * 0.72 + 14 : 22) + (layout.xaxis.title?.text ? 22 : 4);
    const height = layout.height, bottom = height - below;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const along = (a, from, to) => v => from + (v - a.range[0]) / (a.range[1] - a.range[0]) * (to - from);
    const toX = along(x, left, left + inner), toY = along(y, bottom, top);
    const px = v => toX(x.at(v)), py = v => toY(y.at(v));

    // Axes.
    const grid = make(svg, "g", {class: "grid"}), ink = make(svg, "g", {class: "ink"});
    const every = slanted || !crowded ? 1 : Math.ceil(x.ticks.length * (longest + 10) / inner);
    const sparse = slanted ? Math.ceil(x.ticks.length * 16 / inner) : every;
    x.ticks.forEach((tick, i) => {
      const place = toX(tick.at);
      if (!cells) make(grid, "line", {x1: place, x2: place, y1: top, y2: bottom});
      if (i % sparse) return;
      if (slanted) {
        write(ink, tick.text, {x: place, y: bottom + 14, "text-anchor": "end", transform: `rotate(-45 ${place} ${bottom + 14})`}, Math.min(130, place / 0.71));
      } else {
        const half = wide(tick.text) / 2, anchor = place + half > width ? "end" : place - half < 0 ? "start" : "middle";
        write(ink, tick.text, {x: anchor === "end" ? width - 1 : anchor === "start" ? 1 : place, y: bottom + 17, "text-anchor": anchor});
      }
    });
    const dense = Math.ceil(labels.length * 14 / (bottom - top));
    y.ticks.forEach((tick, i) => {
      const place = toY(tick.at);
      if (layout.yaxis.showgrid !== false && !cells && !bars) make(grid, "line", {x1: left, x2: left + inner, y1: place, y2: place});
      if (!labels.length || (i % dense && !y.words)) return;
      const lines = tick.text.split("<br>").length;
      if (above) {
        const text = folded(tick.text.replace("<br>", " "), inner), more = text.includes("<br>") ? 12 : 0;
        write(ink, text, {x: left, y: place - (bars ? 15 : 11) - more}, inner);
      }
      else write(ink, tick.text, {x: left - 8, y: place + 4 - 7 * (lines - 1), "text-anchor": "end"}, left - 10);
    });
    for (const [a, to, line] of [[x, toX, p => ({x1: p, x2: p, y1: top, y2: bottom})], [y, toY, p => ({x1: left, x2: left + inner, y1: p, y2: p})]]) {
      const zero = a.log || a.words ? NaN : 0;
      if (a.settings.zeroline && zero >= Math.min(...a.range) && zero <= Math.max(...a.range)) make(grid, "line", {...line(to(0)), class: "zero"});
    }
    if (layout.xaxis.title?.text) write(ink, layout.xaxis.title.text, {x: left + inner / 2, y: height - 4, "text-anchor": "middle", class: "axis"}, width - 8);
    if (layout.yaxis.title?.text) write(ink, y.words || above ? layout.yaxis.title.text : `↑ ${layout.yaxis.title.text}`, {x: 2, y: 14, class: "axis"}, width - 4);

    // What is drawn.
    const clip = `clip${box.id}`;
    make(make(make(svg, "defs"), "clipPath", {id: clip}), "rect", {x: left - 8, y: top - 8, width: inner + 16, height: bottom - top + 16});
    const all = make(svg, "g"), points = [];
    let before = null;
    for (const trace of data) {
      const own = make(all, "g", {opacity: trace.opacity, "clip-path": trace.cliponaxis === false || bars || cells ? undefined : `url(#${clip})`});
      if (trace.type === "heatmap") { heat(own, trace); continue; }
      const places = trace.x.map((v, i) => known(v) && known(trace.y[i]) ? [px(v), py(trace.y[i])] : null)
        .map(p => p && p.every(Number.isFinite) ? p : null);
      if (trace.type === "bar") row(own, trace, places);
      const mode = trace.mode ?? "lines";
      if (trace.fill === "tonexty" && before) {
        const round = [...places, ...before.slice().reverse()].filter(Boolean);
        make(own, "polygon", {points: round.map(p => p.join()).join(" "), fill: trace.fillcolor});
      }
      before = places;
      if (trace.type !== "bar" && mode.includes("lines") && trace.line?.width !== 0) {
        let path = "", pen = "M";
        places.forEach(p => { path += p ? `${pen}${p[0].toFixed(1)} ${p[1].toFixed(1)}` : ""; pen = p ? "L" : "M"; });
        make(own, "path", {d: path || undefined, fill: "none", stroke: tone(trace.line?.color), "stroke-width": trace.line?.width ?? 2, "stroke-dasharray": DASHES[trace.line?.dash], "stroke-linejoin": "round"});
      }
      for (const letter of ["x", "y"]) if (trace[`error_${letter}`]?.array) whiskers(own, trace, places, letter);
      places.forEach((p, i) => {
        if (!p || trace.type === "bar") return;
        if (mode.includes("markers")) mark(own, ...p, each(trace.marker?.symbol, i, "circle"), each(trace.marker?.size, i, 6), each(trace.marker?.color, i, trace.line?.color), each(trace.marker?.line?.width, i));
        if (mode.includes("text")) label(own, trace.text[i], p);
        const text = hover(trace, i, {x: trace.x[i], y: trace.y[i]});
        if (text) points.push([...p, text]);
      });
    }
    function label(parent, text, [at, up]) {
      const half = wide(text) / 2;
      write(parent, text, {x: Math.min(Math.max(at, half + 1), width - half - 1), y: up - 10, "text-anchor": "middle", class: "ink"});
    }
    function row(parent, trace, places) {
      const thick = Math.min(22, 0.62 * Math.abs(toY(1) - toY(0)));
      places.forEach((p, i) => {
        if (!p) return;
        const [from, to] = [toX(0), p[0]].sort((a, b) => a - b);
        make(parent, "rect", {x: from, y: p[1] - (above ? thick / 3 : thick / 2), width: to - from, height: above ? 0.8 * thick : thick, rx: 2, fill: tone(each(trace.marker.color, i))});
        const error = trace.error_x?.array?.[i] ?? 0;
        if (trace.text) write(parent, trace.text[i], {x: px(trace.x[i] + error) + 5, y: p[1] + 4, class: "ink"});
        points.push([...p, `${bare(trace.y[i])}: ${bare(trace.text?.[i] ?? trace.x[i])}`]);
      });
    }
    function whiskers(parent, trace, places, letter) {
      const error = trace[`error_${letter}`], to = letter === "x" ? px : py, index = letter === "x" ? 0 : 1;
      const [low, high] = letter === "x" ? [left, left + inner] : [bottom, top];
      places.forEach((p, i) => {
        const value = trace[letter][i];
        if (!p || typeof value !== "number") return;
        const reach = [value - (error.arrayminus ?? error.array)[i], value + error.array[i]].map((v, side) => Number.isFinite(to(v)) ? to(v) : side ? high : low);
        if (Math.abs(reach[1] - reach[0]) < 0.5) return;  // what is exact has no bar
        const cap = 3.5, d = index === 0
          ? `M${reach[0]} ${p[1]}H${reach[1]}M${reach[0]} ${p[1] - cap}v${2 * cap}M${reach[1]} ${p[1] - cap}v${2 * cap}`
          : `M${p[0]} ${reach[0]}V${reach[1]}M${p[0] - cap} ${reach[0]}h${2 * cap}M${p[0] - cap} ${reach[1]}h${2 * cap}`;
        make(parent, "path", {d, fill: "none", stroke: tone(error.color ?? "#7a8494"), "stroke-width": error.thickness ?? 1.6});
      });
    }
    function heat(parent, trace) {
      const [columns, lines] = [trace.x.length, trace.y.length], gap = trace.xgap ?? 0;
      const w = inner / columns, h = (bottom - top) / lines;
      trace.z.forEach((values, j) => values.forEach((z, i) => {
        if (!known(z)) return;
        const [cx, cy] = [px(trace.x[i]), py(trace.y[j])];
        make(parent, "rect", {x: cx - w / 2 + gap / 2, y: cy - h / 2 + gap / 2, width: Math.max(w - gap, 1), height: Math.max(h - gap, 1), rx: 3, fill: blend(trace.colorscale, (z - trace.zmin) / (trace.zmax - trace.zmin || 1))});
        const text = trace.text?.[j]?.[i] ?? "";
        if (trace.texttemplate && text) write(parent, text, {x: cx, y: cy - (text.includes("<br>") ? 3 : -4), "text-anchor": "middle", fill: trace.textfont?.color}, w - gap - 4);
        points.push([cx, cy, hover({...trace, text: [text]}, 0, {x: trace.x[i], y: trace.y[j], z}), w / 2, h / 2]);
      }));
    }
    for (const shape of layout.shapes ?? []) {
      const [x1, x2] = [shape.x0, shape.x1].map((v, i) => shape.xref === "x domain" ? left + i * inner : px(v));
      const [y1, y2] = [shape.y0, shape.y1].map((v, i) => shape.yref === "y domain" ? (i ? top : bottom) : py(v));
      make(all, "line", {x1, x2, y1, y2, stroke: tone(shape.line.color), "stroke-width": 2, "stroke-dasharray": DASHES[shape.line.dash]});
    }
    for (const note of layout.annotations ?? []) {
      const at = note.xref === "x domain" ? left + note.x * inner : toX(x.log ? note.x : x.at(note.x));
      const up = (note.yref === "y domain" ? top + (1 - note.y) * (bottom - top) : py(note.y)) - (note.yshift ?? 0) + (note.yref === "y domain" ? -3 : note.yshift === undefined ? -6 : 4);
      const row = note.yshift !== undefined, text = row ? folded(note.text, width - 4) : note.text, long = wide(text);
      const from = row ? 2 : Math.min(Math.max(note.xanchor === "right" ? at - long : at, 2), Math.max(width - long - 2, 2));
      write(ink, text, {x: from, y: Math.max(up - (text === note.text ? 0 : 13), 11)}, row ? width - 4 : width - from);
    }
    if (layout.showlegend) legend(box, data);
    point(box, svg, points, width);
  }

  function blend(scale, share) {
    const channels = colour => colour.startsWith("#") ? [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16)).concat(1) : colour.match(/[\d.]+/g).map(Number);
    const high = Math.max(scale.findIndex(([at]) => at >= share), 1), [[a, one], [b, two]] = [scale[high - 1], scale[high]];
    const t = Math.min(Math.max((share - a) / (b - a), 0), 1), [from, to] = [channels(one), channels(two)];
    return `rgba(${from.map((v, i) => (v + t * (to[i] - v)).toFixed(3)).join()})`;
  }

  function legend(box, data) {
    const list = document.createElement("ul");
    list.className = "keys";
    for (const trace of data) {
      if (!trace.name || trace.showlegend === false) continue;
      const item = document.createElement("li"), svg = make(item, "svg", {width: 26, height: 12, "aria-hidden": "true"});
      const mode = trace.mode ?? "lines";
      if (mode.includes("lines") && trace.line?.width !== 0) make(svg, "line", {x1: 1, x2: 25, y1: 6, y2: 6, stroke: tone(trace.line?.color), "stroke-width": 2, "stroke-dasharray": DASHES[trace.line?.dash]});
      if (mode.includes("markers")) mark(svg, 13, 6, each(trace.marker?.symbol, 0, "circle"), 8, each(trace.marker?.color, 0, trace.line?.color));
      item.append(bare(trace.name));
      list.append(item);
    }
    box.append(list);
  }

  // What the mark next to the pointer is.
  function point(box, svg, points, width) {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    box.append(tip);
    const move = event => {
      const area = svg.getBoundingClientRect(), scale = width / area.width;
      const [mx, my] = [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
      let best = null, least = 26;
      for (const [x, y, text, w = 0, h = 0] of points) {
        const away = Math.hypot(Math.max(Math.abs(mx - x) - w, 0), Math.max(Math.abs(my - y) - h, 0));
        if (away < least) [best, least] = [[x, y, text], away];
      }
      tip.hidden = !best;
      if (!best) return;
      tip.textContent = best[2];
      tip.style.left = `${Math.min(Math.max(best[0] / scale - tip.offsetWidth / 2, 0), area.width - tip.offsetWidth)}px`;
      tip.style.top = `${Math.max(best[1] / scale - tip.offsetHeight - 12, 0)}px`;
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  return {draw};
})();
