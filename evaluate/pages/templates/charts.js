'use strict';
// Draws the Vega-Lite specifications of the page where they are seen, in the colours of the scheme.
const drawn = new Map();

function coloured(value, colour) {
  if (typeof value === 'string') return value.startsWith('$') ? colour(value.slice(1)) : value;
  if (Array.isArray(value)) return value.map(part => coloured(part, colour));
  if (value === null || typeof value !== 'object') return value;
  // A domain holds names of others.
  return Object.fromEntries(
    Object.entries(value).map(([k, v]) => [k, k === 'domain' ? v : coloured(v, colour)]));
}

function appearance(colour, width) {
  const soft = colour('soft'), ink = colour('ink'), font = 'system-ui, sans-serif';
  const labels = {labelColor: soft, labelFontSize: 12, titleColor: soft, titleFontSize: 12,
    titleFontWeight: 'normal', labelFont: font, titleFont: font};
  return {
    background: colour('paper'),
    font,
    view: {stroke: null},
    text: {color: ink, fontSize: 14},
    axis: {...labels, domainColor: colour('rule'), gridColor: colour('rule'), gridOpacity: 0.6,
      tickColor: colour('rule')},
    legend: {...labels, labelColor: ink, labelFontSize: 13, labelLimit: Math.max(120, width - 60),
      orient: 'bottom', direction: 'vertical', columns: width < 520 ? 1 : 2, symbolSize: 120},
  };
}

// The data of a specification: rows as they are, or columns made to rows.
function rowsOf(data) {
  if (!data.columns) return data;
  const names = Object.keys(data.columns);
  const cell = (name, row) => name === 'outcome' ? DATA.outcomes[String(data.columns[name][row])]
    : data.columns[name][row];
  return {values: data.columns[names[0]].map((_, row) =>
    Object.fromEntries(names.map(name => [name, cell(name, row)])))};
}

async function draw(plot) {
  const name = plot.dataset.chart;
  const css = getComputedStyle(document.documentElement);
  const colour = variable => css.getPropertyValue('--' + variable).trim();
  // Rows are data of others and keep a leading $.
  const {data, usermeta, ...rest} = DATA.charts[name];
  const spec = coloured(rest, colour);
  const config = appearance(colour, plot.offsetWidth);
  const compiled = vegaLite.compile({...spec, data: rowsOf(data), config, description: plot.dataset.label,
    autosize: {type: 'fit-x', contains: 'padding'}}, {logger: vega.logger(vega.Error)}).spec;
  plot.replaceChildren();
  const view = new vega.View(vega.parse(compiled, {}, {ast: true}), {
    expr: vegaInterpreter.expressionInterpreter,
    renderer: usermeta ? usermeta.renderer : 'svg',
    container: plot,
    hover: true,
    logLevel: vega.Error,
  });
  drawn.set(name, view);
  view.tooltip((handler, event, item, value) => {
    if (value && typeof value === 'object') {
      showTip(Object.entries(value), event.clientX, event.clientY);
    } else hideTip();
  });
  view.addEventListener('click', (event, item) => {
    if (item && item.tooltip && typeof item.tooltip === 'object') {
      showTip(Object.entries(item.tooltip), event.clientX, event.clientY);
    }
  });
  await view.runAsync();
  plot.dataset.drawn = 'yes';
}

function drawSeen() {
  for (const plot of all('.plot[data-chart]')) {
    if (plot.offsetWidth > 0 && !drawn.has(plot.dataset.chart)) draw(plot);
  }
}
function forget(name) {
  if (!drawn.has(name)) return;
  drawn.get(name).finalize();
  drawn.delete(name);
}

document.addEventListener('viewshown', drawSeen);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  [...drawn.keys()].forEach(forget);
  drawSeen();
});
for (const button of all('[data-svg]')) {
  button.addEventListener('click', async () => {
    const name = button.dataset.svg;
    if (drawn.has(name)) save(name + '.svg', 'image/svg+xml', await drawn.get(name).toSVG());
  });
}
