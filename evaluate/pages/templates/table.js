'use strict';
// The table of figures: differences from the baseline that is chosen, sorting, and CSV.
const chooser = byId('baseline');
const figures = byId('figures');
const signed = value => (value < 0 ? '−' : '+') + Math.abs(value).toFixed(1);
const span = gap => signed(gap.low) + ' to ' + signed(gap.high);

function compareWith(baseline) {
  const gaps = DATA.differences[baseline];
  for (const row of all('tbody tr', figures)) {
    const name = row.dataset.method;
    row.classList.toggle('baseline', name === baseline);
    for (const cell of all('td[data-figure]', row)) {
      const figure = cell.dataset.figure;
      const gap = gaps[name] && gaps[name][figure === 'gain' ? 'rsum' : figure];
      if (figure === 'gain') {
        cell.textContent = gap ? signed(gap.value) : 'baseline';
        cell.dataset.value = gap ? gap.value : 0;
        const small = document.createElement('span');
        small.className = 'diff';
        small.textContent = gap ? span(gap) : '';
        cell.append(small);
        cell.dataset.tip = !gap ? 'What the others are compared with.'
          : gap.p === null ? 'p withheld: ' + gap.withheld : 'p = ' + Number(gap.p.toPrecision(2));
      } else {
        const small = cell.querySelector('.diff');
        small.textContent = gap ? signed(gap.value) : '';
        small.classList.toggle('up', Boolean(gap) && gap.low > 0);
        small.classList.toggle('down', Boolean(gap) && gap.high < 0);
        if (gap) cell.dataset.tip = '95 % interval of the difference: ' + span(gap);
        else delete cell.dataset.tip;
      }
    }
  }
  DATA.charts.differences.data.values = DATA.methods.filter(m => gaps[m.name]).map(m => {
    const gap = gaps[m.name].rsum;
    return {name: m.shown, fusion: m.fusion, rsum: m.rsum, value: gap.value, low: gap.low,
      high: gap.high, interval: span(gap)};
  });
  forget('differences');
}
chooser.addEventListener('change', () => {
  compareWith(chooser.value);
  drawSeen();
});

for (const button of all('[data-sort]', figures)) {
  button.addEventListener('click', () => {
    const head = button.closest('th');
    const figure = button.dataset.sort;
    const down = head.getAttribute('aria-sort') !== 'descending' && figure !== 'name'
      || head.getAttribute('aria-sort') === 'ascending';
    all('th', figures).forEach(other => other.setAttribute('aria-sort', 'none'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => figure === 'name' ? row.dataset.method
      : Number(row.querySelector('[data-figure="' + figure + '"]').dataset.value);
    const body = figures.querySelector('tbody');
    const order = (a, b) => figure === 'name' ? key(a).localeCompare(key(b)) : key(a) - key(b);
    body.append(...all('tr', body).sort((a, b) => down ? order(b, a) : order(a, b)));
  });
}

// A text that a spreadsheet would compute has a mark in front, as in hada.evaluate.results.export.
function csvCell(value) {
  const formula = typeof value === 'string' && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(value);
  const text = (formula ? "'" : '') + String(value ?? '');
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}
const CSV = {
  figures: () => DATA.csv + '\n',
  differences: () => {
    const lines = [['baseline', 'method', 'figure', 'difference', 'low', 'high', 'p']];
    for (const [name, gaps] of Object.entries(DATA.differences[chooser.value])) {
      for (const [figure, gap] of Object.entries(gaps)) {
        lines.push([chooser.value, name, figure, gap.value, gap.low, gap.high, gap.p]);
      }
    }
    return lines.map(line => line.map(csvCell).join(',') + '\n').join('');
  },
};
for (const button of all('[data-csv]')) {
  const name = button.dataset.csv;
  button.addEventListener('click', () => save(name + '.csv', 'text/csv', CSV[name]()));
}
compareWith(chooser.value);
