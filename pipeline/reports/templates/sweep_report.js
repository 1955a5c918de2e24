"use strict";
// Draws the charts of a search's page from the JSON beside it. Texts become text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("sweep").textContent);
  const trials = data.trials;
  const STATES = ["done", "pruned", "failed", "stopped", "running", "waiting"];
  const figures = new Map([...document.querySelectorAll("[data-chart]")].map((figure) => [figure.dataset.chart, figure]));
  const rows = [...document.querySelectorAll("#trials tbody tr")];
  const tip = document.getElementById("tip");
  const charts = new Map(); // name -> {svg, shapes: [{trial, element, points}]}
  const ranges = data.axes.map(() => null); // of each parallel axis: [low, high], or null
  let kept = new Set(trials.map((trial) => trial.number));

  function make(parent, tag, attributes = {}, text) {
    const svg = parent.namespaceURI.endsWith("svg") || tag === "svg";
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return parent.appendChild(element);
  }
  const known = (state) => (STATES.includes(state) ? state : "other");
  const short = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const number = (value) => String(+value.toPrecision(4));

  // A state has a colour and a shape.
  function shape(state, x, y, r) {
    const around = (...points) => `M${points.map(([a, b]) => `${(x + a * r).toFixed(1)} ${(y + b * r).toFixed(1)}`).join("L")}Z`;
    const cross = [[-1, -.6], [-.6, -1], [0, -.4], [.6, -1], [1, -.6], [.4, 0], [1, .6], [.6, 1], [0, .4], [-.6, 1], [-1, .6], [-.4, 0]];
    switch (state) {
      case "pruned": return around([-1.1, -.9], [1.1, -.9], [0, 1.1]);
      case "failed": return around(...cross);
      case "stopped": return around([-.9, -.9], [.9, -.9], [.9, .9], [-.9, .9]);
      case "running": return around([0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]);
      case "waiting": return around([-1.1, .9], [1.1, .9], [0, -1.1]);
      default: return `M${(x - r).toFixed(1)} ${y.toFixed(1)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
    }
  }

  function said(trial) {
    const score = trial.score === null ? "not validated" : `best MAP × 100: ${trial.score.toFixed(2)}`;
    return `Trial ${trial.number}, ${trial.ended}, ${score}; ${trial.setting.map((pair) => pair.join(" ")).join(", ")}`;
  }

  // A thing in a chart that stands for a trial: it can be pointed at and walked to.
  function stand(chart, trial, parent, look, d, points) {
    const best = trial.number === data.best ? " best" : "";
    const attributes = { class: `${look} state-${known(trial.ended)}${best}`, d, tabindex: -1, role: "img", "aria-label": said(trial), "data-trial": trial.number };
    const element = make(parent, "path", attributes);
    chart.shapes.push({ trial, element, points });
    return element;
  }

  // The room for a plot with its two axes; gives the two scales.
  function plot(chart, x, y, labels, height = 300) {
    const { svg, width } = chart;
    const [left, right, top, bottom] = [46, 8, 22, 40];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    const across = (value) => left + ((value - x.low) / (x.high - x.low)) * (width - left - right);
    const up = (value) => height - bottom - ((value - y.low) / (y.high - y.low)) * (height - top - bottom);
    for (const [value, text] of y.ticks) {
      make(svg, "line", { class: "grid", x1: left, x2: width - right, y1: up(value), y2: up(value) });
      make(svg, "text", { x: left - 6, y: up(value) + 4, "text-anchor": "end" }, text);
    }
    for (const [value, text] of x.ticks) make(svg, "text", { x: across(value), y: height - bottom + 18, "text-anchor": "middle" }, text);
    make(svg, "line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
    make(svg, "text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, labels[0]);
    make(svg, "text", { x: 0, y: 10 }, labels[1]);
    if (!trials.some((trial) => trial.history.length)) {
      make(svg, "text", { class: "nothing boxed", x: width / 2, y: height / 2, "text-anchor": "middle" }, "No trial was validated.");
    }
    return { across, up, floor: height - bottom };
  }

  const draw = {
    history(chart) {
      const { across, up, floor } = plot(chart, data.scales.number, data.scales.score, ["number of the trial", "best validation MAP × 100"]);
      let best = -Infinity;
      const steps = [];
      for (const trial of trials) {
        if (trial.score !== null && trial.score > best) {
          if (steps.length) steps.push([across(trial.number), up(best)]);
          best = trial.score;
          steps.push([across(trial.number), up(best)]);
        }
      }
      if (steps.length) make(chart.svg, "path", { class: "sofar", d: path([...steps, [across(trials.length - 1), up(best)]]) });
      for (const trial of trials) {
        // What has no score stands on the axis.
        const [x, y] = [across(trial.number), trial.score === null ? floor : up(trial.score)];
        const r = trial.number === data.best ? 7 : trials.length > 150 ? 3.6 : 5;
        stand(chart, trial, chart.svg, "mark", shape(trial.ended, x, y, r), [[x, y]]);
      }
    },
    curves(chart) {
      const { across, up } = plot(chart, data.scales.epoch, data.scales.map, ["epoch", "validation MAP × 100"]);
      const scored = trials.filter((trial) => trial.history.length);
      const ordered = [...scored].sort((a, b) => (a.number === data.best) - (b.number === data.best));
      for (const trial of ordered) {
        const group = make(chart.svg, "g");
        const points = trial.history.map(([epoch, value]) => [across(epoch), up(value)]);
        const [x, y] = points[points.length - 1];
        const best = trial.number === data.best ? " best" : scored.length > 40 ? " pale" : "";
        const line = make(group, "path", { class: `line state-${known(trial.ended)}${best}`, d: path(points), "data-trial": trial.number });
        stand(chart, trial, group, "mark", shape(trial.ended, x, y, scored.length > 150 ? 3.2 : 4.5), points).line = line;
      }
      chart.shapes.sort((a, b) => a.trial.number - b.trial.number);
    },
    parallel(chart) {
      const [top, bottom, height] = [40, 330, 396];
      const longest = Math.max(3, ...data.axes[0].ticks.map(([, text]) => short(text, 16).length));
      const [left, right] = [18 + 7.5 * longest, 52];
      const width = Math.max(chart.width, left + right + 112 * (data.axes.length - 1));
      const { svg } = chart;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.style.height = `${height}px`;
      svg.style.width = `${width}px`;
      const gap = data.axes.length > 1 ? (width - left - right) / (data.axes.length - 1) : 0;
      const across = (axis) => (data.axes.length > 1 ? left + axis * gap : width / 2);
      const up = (position) => bottom - (position === null ? data.notSet : position) * (bottom - top);
      const scores = trials.map((trial) => trial.score).filter((score) => score !== null);
      const [low, high] = [Math.min(...scores), Math.max(...scores)];
      const order = [...trials].sort((a, b) => (a.number === data.best) - (b.number === data.best) || (a.score ?? -1) - (b.score ?? -1));
      for (const trial of order) {
        const points = trial.positions.map((position, axis) => [across(axis), up(position)]);
        const look = trial.score === null ? "line unscored" : "line scaled";
        const d = points.length > 1 ? path(points) : `M${points[0][0] - 20} ${points[0][1]}h40`;
        const element = stand(chart, trial, svg, look, d, points);
        if (trial.score !== null) element.style.setProperty("--at", `${high > low ? (100 * (trial.score - low)) / (high - low) : 100}%`);
      }
      chart.shapes.sort((a, b) => a.trial.number - b.trial.number);
      data.axes.forEach((axis, i) => {
        const x = across(i);
        make(svg, "line", { class: "axis", x1: x, x2: x, y1: top, y2: bottom });
        const name = make(svg, "text", { class: "name", x, y: 18, "text-anchor": "middle" }, short(axis.label, Math.max(14, Math.floor(gap / 8))));
        make(name, "title", {}, axis.label);
        for (const [position, text] of axis.missing ? [...axis.ticks, [null, "–"]] : axis.ticks) {
          const tick = make(svg, "text", { class: "boxed", x: x - 10, y: up(position) + 4, "text-anchor": "end" }, short(text, i ? Math.max(8, Math.floor(gap / 9)) : 16));
          make(tick, "title", {}, text);
        }
        const range = make(svg, "rect", { class: "range", x: x - 8, width: 16, visibility: "hidden" });
        const label = `${axis.label}: range of the trials shown`;
        const handle = make(svg, "rect", { class: "brush", x: x - 16, width: 32, y: top - 8, height: up(null) - top + 16, tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1, "data-axis": i });
        const show = () => {
          const [from, to] = ranges[i] ?? [0, 0];
          range.setAttribute("visibility", ranges[i] ? "visible" : "hidden");
          range.setAttribute("y", up(to));
          range.setAttribute("height", Math.max(up(from) - up(to), 2));
          handle.setAttribute("aria-valuenow", ((from + to) / 2).toFixed(2));
          handle.setAttribute("aria-valuetext", ranges[i] ? `from ${Math.round(100 * from)} to ${Math.round(100 * to)} % of the axis` : "all");
        };
        brush(i, handle, (event) => (bottom - (event.clientY - svg.getBoundingClientRect().top)) / (bottom - top), show);
        chart.shown.push(show);
        show();
      });
    },
    pareto(chart) {
      const [up, across] = data.objectives;
      const labels = [across, up].map((objective) => `${objective.label}, ${objective.better} is better`);
      const place = plot(chart, data.scales.values[1], data.scales.values[0], labels, 340);
      const points = new Map(trials.filter((t) => t.values).map((t) => [t.number, [place.across(t.values[1]), place.up(t.values[0])]]));
      const front = data.front.map((one) => points.get(one)).sort((a, b) => a[0] - b[0]);
      const stairs = front.flatMap(([x, y], i) => (i ? [across.better === "lower" ? [x, front[i - 1][1]] : [front[i - 1][0], y], [x, y]] : [[x, y]]));
      if (stairs.length) make(chart.svg, "path", { class: "front", d: path(stairs) });
      for (const trial of trials.filter((one) => one.values)) {
        const [x, y] = points.get(trial.number);
        const first = data.front.includes(trial.number);
        const mark = stand(chart, trial, chart.svg, "mark", shape(first ? "running" : trial.ended, x, y, first ? 6 : 4.5), [[x, y]]);
        mark.classList.remove("best");
        if (first) mark.style.setProperty("--state", "var(--pruned)");
      }
    },
    importances(chart) {
      const most = data.importances[0][1];
      const height = 44 * data.importances.length;
      chart.svg.setAttribute("viewBox", `0 0 ${chart.width} ${height}`);
      chart.svg.style.height = `${height}px`;
      data.importances.forEach(([name, share], i) => {
        const wide = (chart.width - 60) * (share / most);
        make(chart.svg, "text", { class: "name", x: 0, y: 44 * i + 14 }, short(name, Math.floor(chart.width / 8)));
        make(chart.svg, "rect", { class: "bar", x: 0, y: 44 * i + 20, width: Math.max(wide, 1), height: 14, rx: 3, role: "img", "aria-label": `${name}: ${share.toFixed(3)}` });
        make(chart.svg, "text", { x: wide + 8, y: 44 * i + 32 }, share.toFixed(3));
      });
    },
  };

  // Drag along an axis, or use the keys, to set its range.
  function brush(axis, handle, position, show) {
    const clip = (at) => Math.min(1, Math.max(data.notSet, at));
    let start = null;
    let moved = false;
    const set = (range) => {
      ranges[axis] = range;
      show();
      filter();
    };
    handle.addEventListener("pointerdown", (event) => {
      start = position(event);
      moved = false;
      handle.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    handle.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const now = position(event);
      moved ||= Math.abs(now - start) > 0.015;
      if (moved) set([clip(Math.min(start, now) - 0.005), clip(Math.max(start, now) + 0.005)]);
    });
    const end = () => {
      if (start !== null && !moved) set(null);
      start = null;
    };
    handle.addEventListener("pointerup", end);
    handle.addEventListener("pointercancel", () => (start = null));
    handle.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 0.05, ArrowDown: -0.05 }[event.key];
      if (event.key === "Escape") set(null);
      if (!step) return;
      event.preventDefault();
      const [low, high] = ranges[axis] ?? [0.5, 1];
      if (!ranges[axis]) set([low, high]);
      else if (event.shiftKey) set([low, clip(Math.max(low + 0.02, high + step))]);
      else if (clip(low + step) === low + step && clip(high + step) === high + step) set([low + step, high + step]);
      else set(step > 0 ? [1 - (high - low), 1] : [data.notSet, data.notSet + high - low]);
    });
  }

  function filter() {
    const inside = (trial) => ranges.every((range, i) => {
      const at = trial.positions[i] ?? data.notSet;
      return !range || (range[0] <= at && at <= range[1]);
    });
    kept = new Set(trials.filter(inside).map((trial) => trial.number));
    document.getElementById("kept").textContent = `${kept.size} of ${trials.length} trials shown.`;
    document.getElementById("clear").hidden = ranges.every((range) => !range);
    for (const chart of charts.values()) fade(chart);
    for (const row of rows) row.hidden = !kept.has(+row.dataset.trial);
  }

  function fade(chart) {
    for (const { trial, element } of chart.shapes) {
      element.classList.toggle("off", !kept.has(trial.number));
      element.line?.classList.toggle("off", !kept.has(trial.number));
    }
    rove(chart, chart.shapes.find((one) => one.trial.number === data.best && kept.has(data.best)) ?? chart.shapes.find((one) => kept.has(one.trial.number)));
  }

  // One stop of the Tab key for each chart; the arrow keys go on from there.
  function rove(chart, to) {
    for (const { element } of chart.shapes) element.setAttribute("tabindex", -1);
    to?.element.setAttribute("tabindex", 0);
    chart.stop = to;
  }

  function walk(chart, event) {
    if (!event.target.dataset.trial) return;
    if (event.key === "Escape") return hide();
    const visible = chart.shapes.filter((one) => kept.has(one.trial.number));
    const at = visible.findIndex((one) => one.element === event.target);
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: visible.length - 1 }[event.key];
    if (to === undefined || !visible[to]) return;
    event.preventDefault();
    rove(chart, visible[to]);
    visible[to].element.focus();
  }

  function distance([x, y], points) {
    let least = Infinity;
    points.forEach(([bx, by], i) => {
      const [ax, ay] = points[Math.max(i - 1, 0)];
      const length = (bx - ax) ** 2 + (by - ay) ** 2;
      const t = length ? Math.min(1, Math.max(0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length)) : 0;
      least = Math.min(least, Math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)));
    });
    return least;
  }

  function point(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top];
    let [found, least] = [null, 16];
    for (const one of chart.shapes) {
      const away = kept.has(one.trial.number) ? distance(at, one.points) : Infinity;
      // Of equals the one that lies in front.
      if (away < least - 0.01 || (away < least + 0.01 && one.trial.number === data.best)) [found, least] = [one, away];
    }
    if (found) show(found.trial, event.clientX, event.clientY);
    else hide();
  }

  let lit = null;
  function light(one, on) {
    for (const chart of charts.values()) {
      for (const { trial, element } of chart.shapes) {
        if (trial.number !== one) continue;
        element.classList.toggle("on", on);
        element.line?.classList.toggle("on", on);
      }
    }
    for (const row of rows) if (+row.dataset.trial === one) row.classList.toggle("on", on);
  }

  function show(trial, x, y) {
    if (lit !== trial.number) {
      if (lit !== null) light(lit, false);
      lit = trial.number;
      light(lit, true);
      tip.replaceChildren();
      make(tip, "strong", {}, `Trial ${trial.number} · ${trial.ended}`);
      const list = make(tip, "dl");
      const epochs = trial.history.length ? ` after ${trial.history[trial.history.length - 1][0]} epochs` : "";
      const score = trial.score === null ? "not validated" : trial.score.toFixed(2) + epochs;
      const values = (trial.values ?? []).map((value, i) => [data.objectives[i], number(value)]);
      const objectives = values.filter(([objective]) => objective.shown).map(([objective, value]) => [objective.label, value]);
      for (const [name, text] of [["best MAP × 100", score], ...objectives, ...trial.setting]) {
        make(list, "dt", {}, name);
        make(list, "dd", {}, text);
      }
      if (trial.reason) make(tip, "p", { class: "soft" }, trial.reason);
    }
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 18 + width < innerWidth ? x + 18 : Math.max(8, x - 18 - width);
    const top = Math.max(8, Math.min(y + 18, innerHeight - height - 8));
    tip.style.transform = `translate(${Math.min(left, Math.max(8, innerWidth - width - 8))}px, ${top}px)`;
  }

  function hide() {
    if (lit !== null) light(lit, false);
    lit = null;
    tip.hidden = true;
  }

  function render(name) {
    const figure = figures.get(name);
    const old = charts.get(name);
    const style = getComputedStyle(figure);
    const width = figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    if (old?.width === width) return;
    figure.replaceChildren();
    const chart = { width, shapes: [], shown: [], svg: make(figure, "svg", { role: "group", "aria-label": figure.getAttribute("aria-label") }) };
    charts.set(name, chart);
    draw[name](chart);
    fade(chart);
    chart.svg.addEventListener("pointermove", (event) => event.buttons || point(chart, event));
    chart.svg.addEventListener("pointerdown", (event) => event.target.dataset.axis || point(chart, event));
    chart.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    chart.svg.addEventListener("keydown", (event) => walk(chart, event));
    chart.svg.addEventListener("focusin", (event) => {
      const one = chart.shapes.find(({ element }) => element === event.target);
      if (!one || !event.target.matches(":focus-visible")) return;
      const box = chart.svg.getBoundingClientRect();
      const [x, y] = one.points[one.points.length - 1];
      show(one.trial, box.left + x, box.top + y);
    });
    chart.svg.addEventListener("focusout", hide);
  }

  function legend() {
    const list = document.querySelector(".legend");
    for (const state of new Set([...STATES, ...trials.map((trial) => trial.ended)])) {
      const n = trials.filter((trial) => trial.ended === state).length;
      if (!n) continue;
      const item = make(list, "li");
      make(make(item, "svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }), "path", { class: `mark state-${known(state)}`, d: shape(state, 7, 7, 5) });
      item.append(`${state} (${n})`);
    }
  }

  function sortable() {
    const heads = [...document.querySelectorAll("#trials thead th")];
    const body = document.querySelector("#trials tbody");
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        // The first click has the highest number, or the first of the alphabet, on top.
        const text = head.classList.contains("left");
        const now = head.getAttribute("aria-sort") ?? (text ? "descending" : "ascending");
        const sign = now === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.order;
        rows.sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          return sign * (text ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
        });
        body.append(...rows);
      });
    });
  }

  function copying() {
    for (const line of document.querySelectorAll(".copy")) {
      line.hidden = false;
      line.querySelector("button").addEventListener("click", async () => {
        const code = line.parentElement.querySelector("pre code");
        const status = line.querySelector("[role=status]");
        try {
          await navigator.clipboard.writeText(code.textContent);
          status.textContent = "Copied.";
        } catch {
          getSelection().selectAllChildren(code);
          status.textContent = document.execCommand("copy") ? "Copied." : "Selected.";
        }
      });
    }
  }

  for (const element of document.querySelectorAll("[data-live], [data-chart]")) element.hidden = false;
  document.getElementById("clear").addEventListener("click", () => {
    ranges.fill(null);
    for (const chart of charts.values()) for (const again of chart.shown) again();
    filter();
  });
  addEventListener("scroll", () => lit !== null && hide(), { passive: true });
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => render(entry.target.dataset.chart)));
  for (const [name, figure] of figures) {
    render(name);
    watch.observe(figure);
  }
  legend();
  sortable();
  copying();
  filter();
})();
