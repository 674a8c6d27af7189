// Small plots of figures, as SVG made of elements: bars with their values as text beside them.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 26;
const LABEL = 150;
const WIDTH = 460;

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/**
 * A bar for each {name, value, text}, as long as its share of `most`; `target` draws a line at that
 * value. A value of null has no bar.
 */
export function bars(title, rows, { most, target } = {}) {
  const longest = most ?? Math.max(1, ...rows.map(({ value }) => value ?? 0));
  const height = rows.length * ROW + 4;
  const room = WIDTH - LABEL - 70;
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "plot", role: "img", "aria-label": title });
  rows.forEach(({ name, value, text }, index) => {
    const [y, width] = [index * ROW + 4, ((value ?? 0) / longest) * room];
    plot.append(
      svg("text", { x: LABEL - 8, y: y + 14, "text-anchor": "end" }, name),
      svg("rect", { x: LABEL, y, width: Math.max(width, 1), height: ROW - 8, rx: 3 }),
      svg("text", { x: LABEL + width + 6, y: y + 14, class: "value" }, text),
    );
  });
  if (target !== undefined) {
    const x = LABEL + (target / longest) * room;
    plot.append(svg("line", { x1: x, x2: x, y1: 0, y2: height, class: "target" }));
  }
  return plot;
}
