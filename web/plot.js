// Small plots of figures, as SVG made of elements: what they show stands beside them as text.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460;
const ROW = 28; // of a bar
const LABEL = 130; // before a bar
const VALUE = 150; // behind it
const HEIGHT = 120; // of columns

function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function plot(title, height) {
  return svg("svg", {
    viewBox: `0 0 ${WIDTH} ${height}`,
    class: "plot",
    role: "img",
    "aria-label": title,
  });
}

const greatest = (rows) => Math.max(1e-9, ...rows.map(({ value }) => value ?? 0));

/** A bar for each {name, value, text}, as long as its share of `most`; null has none. */
export function bars(title, rows, most = greatest(rows)) {
  const made = plot(title, rows.length * ROW);
  rows.forEach(({ name, value, text }, index) => {
    const [y, width] = [index * ROW, Math.min(1, (value ?? 0) / most) * (WIDTH - LABEL - VALUE)];
    made.append(
      svg("text", { x: LABEL - 8, y: y + 17, "text-anchor": "end" }, name),
      svg("rect", { x: LABEL, y: y + 4, width: Math.max(width, 1), height: ROW - 10, rx: 3 }),
      svg("text", { x: LABEL + width + 6, y: y + 17, class: "value" }, text),
    );
  });
  return made;
}

/** A column for each {name, value}, side by side; first, last and highest are named. */
export function columns(title, rows) {
  const [made, most] = [plot(title, HEIGHT + 40), greatest(rows)];
  const step = Math.min(40, WIDTH / rows.length);
  rows.forEach(({ name, value }, index) => {
    const height = (value / most) * HEIGHT;
    const column = svg("rect", {
      x: index * step,
      y: HEIGHT + 18 - height,
      width: step * 0.8,
      height,
      rx: 2,
    });
    column.append(svg("title", {}, `${name}: ${value}`));
    made.append(column);
    if (value === most)
      made.append(svg("text", { x: index * step, y: HEIGHT + 13 - height, class: "value" }, value));
  });
  const [first, last] = [rows[0].name, rows.at(-1).name];
  const named = last === first ? first : `${first} – ${last}`;
  made.append(svg("text", { x: 0, y: HEIGHT + 34 }, named));
  return made;
}
