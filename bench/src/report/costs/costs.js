// The sums of costs/mod.rs with the reader's own numbers.
(() => {
  const model = JSON.parse(document.getElementById("coefficients").textContent);
  const form = document.getElementById("reader");
  const median = (sorted) => (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  // The narrowest pair of order statistics that covers the median with at least 95 %.
  const covering = (sorted) => {
    const n = sorted.length;
    let probability = 0.5 ** n, below = 0, best = null;
    for (let k = 1; k <= Math.ceil(n / 2); k++) {
      below += probability;
      if (1 - 2 * below < 0.95) break;
      best = [sorted[k - 1], sorted[n - k]];
      probability *= (n + 1 - k) / k;
    }
    return best;
  };
  const summed = (blocks) => {
    if (!blocks.length) return null;
    const sorted = [...blocks].sort((a, b) => a - b);
    return { value: median(sorted), interval: covering(sorted) };
  };
  const times = (e, factor) => ({ value: e.value * factor, interval: e.interval && e.interval.map((end) => end * factor) });
  const plus = (a, b) => ({ value: a.value + b.value, interval: a.interval && b.interval && a.interval.map((end, i) => end + b.interval[i]) });
  const number = (value) => {
    const size = Math.abs(value);
    if (!Number.isFinite(value)) return "–";
    if (size === 0) return "0";
    const decimals = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(size * (1 + 5e-4)))));
    return value.toFixed(Number.isInteger(value) ? 0 : decimals).replace("-", "−");
  };
  const shown = (e, unit) => number(e.value) + unit + (e.interval ? ` [${number(e.interval[0])}, ${number(e.interval[1])}]` : "");
  const ruling = (row, money) => {
    if (!row.difference) return "";
    if (model.silence) return model.silence;
    if (!money.interval) return "~ too few blocks";
    if (money.interval[1] < 0) return "costs less";
    return money.interval[0] > 0 ? "costs more" : "~ no claim";
  };
  const update = () => {
    const given = (name) => Math.max(0, Number(form.elements[name].value) || 0);
    const onANode = (lines) => summed(lines.map(([base, slope]) => base + slope * given("pods")));
    model.rows.forEach((row, at) => {
      const gib = times(onANode(row.memory), given("nodes") / 1024);
      const requests = times(summed(row.request), given("requests") / 1e6);
      const idle = onANode(row.idle);
      const cores = idle ? plus(times(idle, given("nodes") / 1000), requests) : requests;
      const money = plus(times(cores, given("core") * model.hours), times(gib, given("gib") * model.hours));
      const cells = document.getElementById("bill").tBodies[0].rows[at].cells;
      [shown(cores, ""), shown(gib, " GiB"), shown(money, ""), ruling(row, money)].forEach((text, i) => (cells[i + 1].textContent = text));
    });
    document.getElementById("beyond").hidden = given("pods") <= model.mostPods;
  };
  form.hidden = false;
  document.querySelector(".scripted-off").hidden = true;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
