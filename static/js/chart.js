// <x-chart>: the reward chart. Points are [step, train, valid, low, high]; one step is one point, so a
// point that arrives twice changes nothing. Colours come from the stylesheet's variables.
"use strict";

const SMOOTHING = 0.6;

class RewardChart extends HTMLElement {
  connectedCallback() {
    if (this.points) return;
    const given = JSON.parse(this.querySelector("script").textContent || "[]");
    this.points = new Map(given.map((point) => [point[0], point]));
    this.replaceChildren();
    this.place = document.createElement("div");
    this.place.className = "plot";
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.append(this.place, this.tip);
    this.addEventListener("keydown", (event) => this.onKey(event));
    this.addEventListener("blur", () => this.leave());
    document.addEventListener("themechange", () => this.rebuild());
    new ResizeObserver(() => this.resize()).observe(this);
    // Drawn before its font is there, the axis would fall back to another.
    document.fonts.load("11px Inter").finally(() => this.rebuild());
  }

  add(point) {
    this.points.set(point[0], point);
    this.dataset.points = String(this.points.size);
    if (point[2] !== null) this.dataset.lastValid = point[2].toFixed(4);
    if (this.plot) this.plot.setData(this.columns());
    else this.rebuild();
  }

  columns() {
    const rows = [...this.points.values()].sort((a, b) => a[0] - b[0]);
    this.steps = rows.map((row) => row[0]);
    const train = rows.map((row) => row[1]);
    const valid = rows.map((row) => row[2]);
    const base = rows.find((row) => row[0] === 0 && row[2] !== null)?.[2] ?? null;
    // An exponential average, its start corrected for the steps that are not there.
    let sum = 0;
    let weight = 0;
    const average = train.map((value) => {
      if (value === null) return null;
      sum = SMOOTHING * sum + (1 - SMOOTHING) * value;
      weight = SMOOTHING * weight + (1 - SMOOTHING);
      return sum / weight;
    });
    const bounded = rows.map((row) => (row[3] === null ? null : Math.max(row[3], 0)));
    const above = rows.map((row) => (row[4] === null ? null : Math.min(row[4], 1)));
    this.rows = rows;
    return [this.steps, train, average, valid, bounded, above, this.steps.map(() => base)];
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    this.place.replaceChildren();
    this.place.className = "plot";
    if (!this.points.size) {
      this.place.className = "plot waiting";
      const words = document.createElement("p");
      words.textContent = this.dataset.waiting || "No point yet.";
      this.place.append(words);
      return;
    }
    this.plot = new uPlot(this.options(), this.columns(), this.place);
  }

  options() {
    const style = getComputedStyle(this);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--ink-3"),
      font: "11px Inter, sans-serif",
      ticks: { show: false },
      grid: { stroke: colour("--line"), width: 1 },
    };
    const line = { points: { show: false }, spanGaps: true };
    const faint = colour("--chart-valid") + "22";
    return {
      width: Math.max(this.clientWidth, 120),
      height: this.clientHeight || 240,
      legend: { show: false },
      padding: [10, 44, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (_plot, low, high) => [low, Math.max(high, low + 1)] },
        y: { range: (_plot, low, high) => [Math.min(0, low ?? 0), Math.max(1, high ?? 1)] },
      },
      axes: [
        { ...axis, size: 28, grid: { show: false }, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
        { ...axis, size: 40, splits: (_plot, _axis, low, high) => (low < 0 || high > 1 ? [low, 0, 0.5, 1, high] : [0, 0.25, 0.5, 0.75, 1]), values: (_plot, ticks) => ticks.map((tick) => String(Math.round(tick * 100) / 100)) },
      ],
      series: [
        {},
        { ...line, label: "train", stroke: colour("--chart-train") + "66", width: 1 },
        { ...line, label: "average", stroke: colour("--chart-train"), width: 2 },
        { ...line, label: "validation", stroke: colour("--chart-valid"), width: 2, points: { show: true, size: 7, width: 2, stroke: colour("--chart-valid"), fill: colour("--surface"), filter: (plot, index, show) => (show ? plot.data[index].flatMap((value, place) => (value === null ? [] : [place])) : []) } },
        { ...line, label: "low", stroke: "transparent", width: 0 },
        { ...line, label: "high", stroke: "transparent", width: 0 },
        { ...line, label: "base", stroke: colour("--chart-base"), width: 1.5, dash: [5, 4] },
      ],
      bands: [{ series: [5, 4], fill: faint }],
      hooks: {
        draw: [(plot) => this.drawMarks(plot, colour)],
        setCursor: [(plot) => this.tell(plot)],
      },
    };
  }

  // Checkpoint ticks on the axis, and the last validation value beside its point.
  drawMarks(plot, colour) {
    const { ctx } = plot;
    const scale = devicePixelRatio;
    const bottom = plot.bbox.top + plot.bbox.height;
    ctx.save();
    ctx.fillStyle = colour("--ink-2");
    for (const step of this.checkpointSteps()) {
      const x = plot.valToPos(step, "x", true);
      ctx.beginPath();
      ctx.moveTo(x, bottom - 7 * scale);
      ctx.lineTo(x + 4 * scale, bottom);
      ctx.lineTo(x - 4 * scale, bottom);
      ctx.fill();
    }
    const last = [...this.rows].reverse().find((row) => row[2] !== null);
    if (last) {
      ctx.fillStyle = colour("--chart-valid");
      ctx.font = `620 ${12 * scale}px Inter, sans-serif`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "left";
      const x = plot.valToPos(last[0], "x", true) + 9 * scale;
      ctx.fillText(last[2].toFixed(2), x, plot.valToPos(last[2], "y", true));
    }
    ctx.restore();
  }

  checkpointSteps() {
    const first = this.steps[0];
    const last = this.steps[this.steps.length - 1];
    return [...document.querySelectorAll("[data-testid=checkpoint-row]")]
      .map((row) => Number(row.dataset.step))
      .filter((step) => step >= first && step <= last);
  }

  tell(plot) {
    const { idx, left } = plot.cursor;
    if (idx === null || idx === undefined || left < 0) {
      this.tip.hidden = true;
      return;
    }
    const [step, train, valid, low, high] = this.rows[idx];
    const lines = [["", `Step ${step}`]];
    if (train !== null) lines.push(["train ", train.toFixed(3)], ["average ", plot.data[2][idx].toFixed(3)]);
    if (valid !== null) lines.push(["validation ", valid.toFixed(3) + (low === null ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`)]);
    this.tip.replaceChildren(...lines.map(([name, value]) => {
      const row = document.createElement("div");
      const strong = document.createElement("b");
      strong.textContent = value;
      row.append(name, strong);
      return row;
    }));
    this.tip.hidden = false;
    const x = plot.bbox.left / devicePixelRatio + left;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${x + wide + 20 > this.clientWidth ? x - wide - 12 : x + 12}px`;
    this.tip.style.top = "12px";
  }

  onKey(event) {
    if (!this.plot || !["ArrowLeft", "ArrowRight", "Home", "End", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") return this.leave();
    const last = this.steps.length - 1;
    const now = this.plot.cursor.idx ?? last + 1;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    const index = Math.min(Math.max(next, 0), last);
    this.plot.setCursor({ left: this.plot.valToPos(this.steps[index], "x"), top: 20 });
  }

  leave() {
    this.plot?.setCursor({ left: -10, top: -10 });
  }

  resize() {
    if (this.plot && this.clientWidth) this.plot.setSize({ width: this.clientWidth, height: this.clientHeight });
  }
}

customElements.define("x-chart", RewardChart);
