// Shows the values nearest to the pointer below each chart. Without this script the page lacks nothing else.
"use strict";
const nearest = (xs, x) => xs.reduce((best, one, i) => (Math.abs(one - x) < Math.abs(xs[best] - x) ? i : best), 0);
const count = (value) => value.toLocaleString("en");

for (const figure of document.querySelectorAll("figure.chart")) {
  const series = JSON.parse(figure.querySelector("script").textContent).filter((one) => one.x.length);
  const readout = figure.querySelector("output");
  for (const svg of figure.querySelectorAll("svg")) {
    const cursor = svg.querySelector(".cursor");
    const [low, high, left, right] = ["low", "high", "left", "right"].map((name) => Number(svg.dataset[name]));
    const show = (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const x = low + ((at - left) / (right - left)) * (high - low);
      const found = series.map((one) => [one, nearest(one.x, x)]);
      const [first, i] = found.reduce((a, b) => (Math.abs(b[0].x[b[1]] - x) < Math.abs(a[0].x[a[1]] - x) ? b : a));
      const here = left + ((first.x[i] - low) / (high - low)) * (right - left);
      cursor.setAttribute("x1", here);
      cursor.setAttribute("x2", here);
      cursor.style.display = "inline";
      const values = found.map(([one, j]) => {
        const other = one.step[j] === first.step[i] || one.x.length === 2 ? "" : ` (step ${count(one.step[j])})`;
        return `${one.name} ${one.y[j]}${other}`;
      });
      readout.textContent = `step ${count(first.step[i])}, ${count(first.x[i])} tokens: ${values.join(", ")}`;
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => {
      cursor.style.display = "none";
      readout.textContent = "";
    });
  }
}
