"use strict";
(() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
    return value.toLocaleString("en", { maximumSignificantDigits: 5 });
  };
  const ticks = (u, values) => {
    const size = Math.max(...values.map(Math.abs));
    if (size !== 0 && size < 0.01) return values.map((value) => (value === 0 ? "0" : value.toExponential(1)));
    return values.map((value) => (size >= 1e6 ? value.toExponential(1) : value.toLocaleString("en", { maximumFractionDigits: 4 })));
  };
  const drawn = new Map();

  function options(chart, width) {
    const faint = style("--faint"), grid = { stroke: style("--grid"), width: 1 };
    const axis = { stroke: faint, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    return {
      width, height: Math.max(200, Math.min(320, width * 0.55)),
      scales: { x: { time: false } },
      cursor: { drag: { x: true, y: false }, focus: { prox: 30 }, sync: chart.x === "step" ? { key: "step", setSeries: false } : undefined },
      legend: { live: true },
      axes: [{ ...axis, values: ticks, space: 60 }, { ...axis, values: ticks, size: 62 }],
      series: [
        { label: chart.x, value: (u, value) => number(value) },
        ...chart.series.map((line) => {
          const stroke = style("--s" + line.color);
          return {
            label: line.label, stroke, width: line.look === "faint" ? 1 : 2, alpha: line.look === "faint" ? 0.45 : 1,
            spanGaps: true, value: (u, value) => number(value),
            points: { show: line.look === "marked" || line.x.length < 3, size: 6, fill: stroke },
          };
        }),
      ],
    };
  }

  function inWords(chart) {
    const parts = chart.series.map((line) => `${line.label} from ${number(line.y[0])} to ${number(line.y[line.y.length - 1])}`);
    return `${chart.title}: ${parts.join("; ")}. Arrow keys read values.`;
  }

  function listen(element, chart, spoken) {
    let at = 0;
    element.addEventListener("keydown", (event) => {
      const u = drawn.get(element), xs = u.data[0], last = xs.length - 1;
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -Math.ceil(last / 10), PageDown: Math.ceil(last / 10), Home: -last, End: last }[event.key];
      const { min, max } = u.scales.x;
      if (move !== undefined) {
        at = Math.max(0, Math.min(last, at + move));
        if (xs[at] < min || xs[at] > max) u.setScale("x", { min: xs[0], max: xs[last] });
        const y = u.data.slice(1).map((line) => line[at]).find((value) => value != null);
        u.setCursor({ left: u.valToPos(xs[at], "x"), top: y == null ? 0 : u.valToPos(y, "y") });
        spoken.textContent = `${chart.x} ${number(xs[at])}: ` + chart.series
          .map((line, i) => [line.label, u.data[i + 1][at]]).filter((pair) => pair[1] != null)
          .map((pair) => `${pair[0]} ${number(pair[1])}`).join(", ");
      } else if (event.key === "+" || event.key === "=" || event.key === "-") {
        const middle = Math.max(min, Math.min(max, xs[at])), factor = event.key === "-" ? 2 : 0.5;
        u.setScale("x", {
          min: Math.max(xs[0], middle - (middle - min) * factor), max: Math.min(xs[last], middle + (max - middle) * factor),
        });
      } else if (event.key === "0" || event.key === "Escape") {
        u.setScale("x", { min: xs[0], max: xs[last] });
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  function draw() {
    const charts = JSON.parse(document.getElementById("data").textContent) || [];
    for (const element of document.querySelectorAll("[data-chart]")) {
      const chart = charts.find((one) => one.name === element.dataset.chart);
      if (!chart || !chart.series.length) continue;
      if (drawn.has(element)) drawn.get(element).destroy();
      else {
        const spoken = document.createElement("span");
        spoken.className = "spoken";
        spoken.setAttribute("aria-live", "polite");
        element.append(spoken);
        element.tabIndex = 0;
        element.setAttribute("role", "group");
        element.setAttribute("aria-label", inWords(chart));
        listen(element, chart, spoken);
      }
      const lines = uPlot.join(chart.series.map((line) => [line.x, line.y]));
      drawn.set(element, new uPlot(options(chart, element.clientWidth - 16), lines, element));
    }
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.lorakeet = { draw, drawn };
  draw();
})();
